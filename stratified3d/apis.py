"""The detector in two calls: `init_detector` and `detect`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from stratified3d.checkpoints import check_fit, load_checkpoint_file
from stratified3d.datasets.io.point_files import read_points
from stratified3d.layers.strata_record import StrataRecord, record_strata

# sweeps lie within half a second; a column of whole numbers up to 31 or 63 is a ring index
_MAX_DT = 2.5


class Detections(NamedTuple):
    """boxes [K, 7 or 9] float32: bottom center x, y, z, dx, dy, dz (m), yaw (rad), and vx, vy (m/s)
    where the model has learned them; scores [K] float32, falling; names: K class names."""

    boxes: np.ndarray
    scores: np.ndarray
    names: list[str]


def init_detector(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Build a detector for inference.

    Args:
        config: path or Config of a model of this plugin.
        checkpoint: a .pth written by training, or a .safetensors file; None leaves random weights.
        device: default the GPU where there is one, else the CPU.
    Returns:
        The model in evaluation mode, with `cfg` and `class_names`.
    Raises:
        FileNotFoundError, ValueError: missing or damaged files, weights of another model.
    """
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise FileNotFoundError(f'there is no config {config}')
        config = Config.fromfile(config)
    import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    model.cfg, model.class_names = (
        config,
        [name for names in model.head.class_names for name in names],
    )
    if checkpoint is None:
        before = logging.root.manager.disable
        logging.disable(max(before, logging.INFO))  # mmengine would list every parameter
        try:
            model.init_weights()
        finally:
            logging.disable(before)
    else:
        _load_weights(model, str(checkpoint))
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return model.to(device).eval()


def _load_weights(model: nn.Module, checkpoint: str) -> None:
    content = load_checkpoint_file(checkpoint, map_location='cpu')
    state = content.get('state_dict', content)
    classes = ((content.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    check_fit(model, state, checkpoint, classes, model.class_names)
    model.load_state_dict(state)


def detect(model: nn.Module, points: np.ndarray | Tensor | str | Path) -> Detections:
    """Detect objects in one point cloud.

    Args:
        model: from `init_detector`.
        points: [P, 4] x, y, z (m, LiDAR frame), intensity (0 to 255); or [P, 5] with dt, each
        point's age in
            seconds; or the path of a .bin, .npy, .pcd or .ply file of one sweep. NaN, infinite and
            out-of-range points are left out; an empty cloud gives no detections.
    Returns:
        Detections, by falling score.
    Raises:
        FileNotFoundError, ValueError: an unreadable file, columns that do not fit.
    """
    points = _prepare(read_points(points) if isinstance(points, (str, Path)) else points)
    sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
    with torch.no_grad():
        data = model.data_preprocessor(
            dict(inputs=dict(points=[points]), data_samples=[sample]), training=False
        )
        found = model(**data, mode='predict')[0].pred_instances_3d
    found = found[found.scores_3d.argsort(descending=True)].to('cpu')
    return Detections(
        found.bboxes_3d.tensor.numpy(),
        found.scores_3d.numpy(),
        [model.class_names[i] for i in found.labels_3d.tolist()],
    )


def inspect_strata(
    model: nn.Module, points: np.ndarray | Tensor | str | Path, stage: int = 0, block: int = -1
) -> StrataRecord:
    """The strata tokens of one block for one point cloud: where they sit, what they collect, who
    reads them.

    Args:
        model: from `init_detector`.
        points: as in `detect`.
        stage, block: of the encoder; negative ones count from the end.
    Returns:
        StrataRecord of numpy arrays.
    Raises:
        ValueError: no such stage or block, a block without strata.
    """
    try:
        mixer = model.encoder.stages[stage].blocks[block].mixer
    except IndexError:
        depths = [len(s.blocks) for s in model.encoder.stages]
        raise ValueError(
            f'there is no block {block} of stage {stage}; the stages have {depths} blocks'
        ) from None
    with record_strata(mixer) as records:
        detect(model, points)
    return StrataRecord(*(part.cpu().numpy() for part in records[0]))


def _prepare(points: np.ndarray | Tensor) -> Tensor:
    points = torch.as_tensor(points).float()
    if points.dim() != 2 or points.shape[1] not in (4, 5):
        raise ValueError(
            f'points are [P, 4] x, y, z, intensity, or [P, 5] with dt, not {list(points.shape)}'
        )
    if points.shape[1] == 4:
        return torch.cat([points, points.new_zeros(len(points), 1)], 1)
    ages = points[points[:, 4].isfinite(), 4]
    if bool((ages > _MAX_DT).any()):
        raise ValueError(
            f'column 4 is dt, the age of each point in seconds, but holds values up to '
            f'{ages.max():.0f}: if it is a ring index, pass points[:, :4]'
        )
    return points
