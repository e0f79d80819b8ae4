"""The detectors of `benchmark.py model`: ours and mmdet3d's CenterPoint.

CenterPoint runs as mmdet3d configures it, and with the cells and the range of ours.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import mmdet3d
import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from stratified3d.apis import init_detector

OURS = Path(__file__).parents[2] / 'configs/stratified'
MMDET3D = Path(mmdet3d.__file__).parent / '.mim/configs/centerpoint'
PILLAR, VOXEL = 'CenterPoint pillar 0.2', 'CenterPoint voxel 0.1'
# memory formats of the BEV feature maps; mmdet3d uses the first
LAYOUTS = ('contiguous', 'channels-last')
# sparse convolutions on a CPU; spconv's sums are wrong there with more than one thread, so the
# first is refused
SPCONV, ONE_THREAD, RULEBOOK = 'spconv', 'spconv on one thread', "spconv's pairs, torch's products"


class Entry(NamedTuple):
    """A detector of the table.

    cell: meters of a cell of the head's feature map; origin: its corner in meters; ours: whether it
    is ours or mmdet3d's; sparse: whether it has sparse convolutions of mmdet3d.
    """

    name: str
    config: Config
    cell: float
    origin: float
    ours: bool
    sparse: bool = False

    def build(self) -> Base3DDetector:
        """The model on the CPU in evaluation mode; its random weights are always the same."""
        torch.manual_seed(0)
        if self.ours:
            return init_detector(self.config, device='cpu')
        before = logging.root.manager.disable
        logging.disable(logging.INFO)  # mmengine would list every parameter
        try:
            with DefaultScope.overwrite_default_scope('mmdet3d'):
                model = MODELS.build(self.config.model)
            model.init_weights()
        finally:
            logging.disable(before)
        return model.eval()

    def variants(self, device: torch.device) -> list[dict[str, Any]]:
        """Settings to run the same model with on this device; the first are the defaults."""
        if self.ours:
            return [{}]
        choices: list[dict[str, Any]] = [{}]
        if device.type == 'cuda':  # mmdet3d calls the second one considerably faster
            choices = [dict(voxels='ordered'), dict(voxels='unordered')]
        elif self.sparse:
            choices = [dict(convolution=ONE_THREAD), dict(convolution=RULEBOOK)]

        found = [dict(layout=layout, **choice) for layout in LAYOUTS for choice in choices]
        if device.type == 'cpu' and self.sparse:
            found.insert(0, dict(found[0], convolution=SPCONV))
        return found


def list_entries(reach: float | None = None) -> list[Entry]:
    """All detectors.

    Args:
        reach: meters; cuts every range to +-reach, a multiple of 2.4.
    """
    ours = [
        _our_entry('stratified pillar 0.3', 'pillar03', reach),
        _our_entry('stratified voxel 0.3', 'voxel03', reach),
    ]
    our_range = ours[0].config.model.point_cloud_range
    return [
        *ours,
        _mmdet3d_entry(PILLAR, 'pillar02_second', reach),
        # the first stage takes every third pillar: our cells of 0.6 m
        _mmdet3d_entry(f'{PILLAR}, map of 0.6 m', 'pillar02_second', reach, our_range, stride=3),
        _mmdet3d_entry(VOXEL, 'voxel01_second', reach),
        # mmdet3d's own config, with our cells of 0.6 m and our range
        _mmdet3d_entry('CenterPoint voxel 0.075', 'voxel0075_second', reach),
    ]


def _our_entry(name: str, config_name: str, reach: float | None) -> Entry:
    path = OURS / f'stratified-centerpoint_{config_name}_8xb4-cyclic-20e_nus-3d.py'
    config = Config.fromfile(path)
    model = config.model
    if reach:
        model.point_cloud_range = _cut(model.point_cloud_range, reach)
    cell = model.voxel_size[0] * model.backbone.strides[0]
    return Entry(name, config, cell, origin=model.point_cloud_range[0], ours=True)


def _mmdet3d_entry(
    name: str,
    config_name: str,
    reach: float | None,
    point_cloud_range: list[float] | None = None,
    stride: int | None = None,
) -> Entry:
    """A config of mmdet3d, with another range or stride of the backbone if given."""
    path = MMDET3D / f'centerpoint_{config_name}_secfpn_8xb4-cyclic-20e_nus-3d.py'
    config = Config.fromfile(path)
    model = config.model
    limits = point_cloud_range or model.data_preprocessor.voxel_layer.point_cloud_range
    _set_range(model, _cut(limits, reach) if reach else limits)
    coder = model.pts_bbox_head.bbox_coder
    if stride:
        model.pts_backbone.layer_strides = [stride, 2, 2]
        model.pts_neck.upsample_strides = [1, 2, 4]
        model.test_cfg.pts.out_size_factor = stride
        coder.out_size_factor = stride
    cell = coder.voxel_size[0] * coder.out_size_factor
    return Entry(
        name, config, cell, origin=coder.pc_range[0], ours=False, sparse='voxel' in config_name
    )


def _cut(limits: list[float], reach: float) -> list[float]:
    return [-reach, -reach, limits[2], reach, reach, limits[5]]


def _set_range(model: Config, limits: list[float]) -> None:
    """Set the range of a CenterPoint of mmdet3d, and the grid that follows from it, everywhere."""
    voxel_layer = model.data_preprocessor.voxel_layer
    voxel_layer.point_cloud_range = list(limits)
    width, depth = limits[3] - limits[0], limits[4] - limits[1]
    x = round(width / voxel_layer.voxel_size[0])
    y = round(depth / voxel_layer.voxel_size[1])

    middle_encoder = model.pts_middle_encoder
    if 'sparse_shape' in middle_encoder:
        middle_encoder.sparse_shape = [middle_encoder.sparse_shape[0], y, x]
    else:
        middle_encoder.output_shape = (y, x)
        model.pts_voxel_encoder.point_cloud_range = list(limits)
    model.pts_bbox_head.bbox_coder.pc_range = list(limits[:2])
    model.test_cfg.pts.pc_range = list(limits[:2])
