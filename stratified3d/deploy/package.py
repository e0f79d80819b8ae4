"""Run a packaged detector: needs torch and numpy, nothing of OpenMMLab."""

from __future__ import annotations

import json
import platform
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratified3d.detections import Detections, drop_own_vehicle, points_with_dt
from stratified3d.sensors import Sensor, frame_change, named_sensor

KEY = 'stratified3d'  # in the package's metadata
# instructions that no compiler makes of code like a program's, and that differ between makers
_UNUSED = {'aes', 'avx512_vp2intersect', 'clflush', 'clflushopt', 'clwb', 'sha', 'sse4a'}
_PADDING = 2  # rows without a point, so that a program for any number of rows has that many


def load(path: str | Path) -> PackagedDetector:
    """Load a detector that `stratified3d export` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, one for another device or processor, or of another version of
            torch.
    """
    path = Path(path)
    info = read_info(path)
    device = info['device']
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            f'{path} is a package for cuda, and this machine has no CUDA device: export it with '
            '--device cpu'
        )
    if info['versions']['torch'] != release(torch.__version__):
        raise ValueError(
            f'{path} was compiled by torch {info["versions"]["torch"]} and this is torch '
            f'{torch.__version__}: install that version, or export again with this one'
        )
    needed, here = info.get('processor'), processor_of(device)
    if needed not in (None, here, here.replace('AVX512', 'AVX2')):
        raise ValueError(
            f'{path} was compiled for {needed} and this is {here}: export it on such a machine'
        )
    missing = set(info.get('instructions', ())) - set(host_instructions())
    if missing:
        raise ValueError(
            f'{path} was compiled for a processor with {", ".join(sorted(missing))}, which this '
            'one lacks: export it on this machine, or on one like it'
        )
    return PackagedDetector(_load_program(path), info)


def _load_program(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """What `torch._inductor.aoti_load_package` returns, without its two seconds of imports."""
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), 'model', False, 1, -1)
    return lambda points: loader.boxed_run([points])


def read_info(path: str | Path) -> dict[str, Any]:
    """Return what a package says about itself, see `export.build_program`.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no package {path}')
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith('_metadata.json')]
            content = json.loads(archive.read(names[0]))
        return json.loads(content[KEY])
    except (zipfile.BadZipFile, IndexError, KeyError, ValueError):
        raise ValueError(f'{path} is not a package that `stratified3d export` wrote') from None


def processor_of(device: str) -> str:
    """Return what instructions code for a device of this machine has: x86_64 AVX512, sm_90."""
    if device == 'cuda':
        major, minor = torch.cuda.get_device_capability()
        return f'sm_{major}{minor}'
    return f'{platform.machine()} {torch.backends.cpu.get_cpu_capability()}'


def host_instructions() -> list[str]:
    """Return the instruction sets of this processor that a compiler may use: avx2, avx512_f, ...

    Code is compiled for all of them, that around the kernels of a GPU as well. The list is empty
    where torch cannot tell.
    """
    if not hasattr(torch.cpu, 'get_capabilities'):
        return []
    found = torch.cpu.get_capabilities()
    return sorted(name for name, value in found.items() if value is True and name not in _UNUSED)


def release(version: str) -> str:
    """Return a version without the build: 2.13.0 of 2.13.0+cpu."""
    return version.split('+')[0]


class PackagedDetector:
    """A detector that is called with points and returns what `apis.detect` returns.

    Args:
        program: called with points [P, 5], returns boxes, scores, labels, the number of detections
            and the number of voxels.
        info: of the package, see `read_info`.
    """

    def __init__(self, program: Any, info: dict[str, Any]):
        self._program = program
        self.info = info
        self.class_names: list[str] = info['classes']
        self.num_dropped = 0  # points with NaN, infinite or absurd values, so far
        self.num_dropped_voxels = 0  # over the capacity, so far
        self.num_dropped_points = 0  # over the number of points of static shapes, so far

    def __call__(
        self, points: np.ndarray | Tensor, sensor: Sensor | str | None = None
    ) -> Detections:
        """Detect objects in one point cloud.

        Args:
            points: [P, 4] or [P, 5], see `apis.detect`; without points there are no detections.
            sensor: see `apis.detect`.
        Raises:
            ValueError: other columns, more voxels than the package's capacity, more points than
                its static shapes have room for.
            RuntimeError: NMS of a package of static shapes takes more rounds than it has.
        """
        points = points_with_dt(points)
        change = None
        taken_for = model = named_sensor(self.info['sensor'])
        if sensor is not None:
            change = frame_change(points.cpu().numpy(), sensor, model)
            taken_for = change.sensor
            points = torch.from_numpy(change.points_to_model(points.cpu().numpy()))
        self._count_invalid(points)
        boxes, scores, names = self._run(points)
        boxes = boxes if change is None else change.boxes_to_file(boxes)
        found = Detections(boxes, scores, names)
        return drop_own_vehicle(found) if taken_for.drop_own else found

    def has_room(self, points: np.ndarray | Tensor) -> bool:
        """Return whether a frame in the model's own frame is within the capacity and the number of
        points, so that nothing of it is dropped and it is not refused.

        Args:
            points: [P, 4] or [P, 5].
        """
        capacity, room = self.info['capacity'], self.info.get('num_points')
        cells, is_inside = self._cells(points_with_dt(points))
        has_voxels = capacity is None or len(torch.unique(cells[is_inside])) <= capacity
        return has_voxels and (room is None or int(is_inside.sum()) <= room)

    def _run(self, points: Tensor) -> tuple[np.ndarray, np.ndarray, list[str]]:
        points = self._pad(points).to(self.info['device'])
        self._check_capacity(points)
        boxes, scores, labels, count, voxels = self._program(points)
        if self.info['overflow'] == 'drop' and self.info['capacity'] is not None:
            self.num_dropped_voxels += max(int(voxels) - self.info['capacity'], 0)
        found = int(count)
        if found < 0:
            raise RuntimeError(
                'the boxes of this frame overlap in chains longer than the rounds of NMS in a '
                'package of static shapes: export it without --points'
            )
        names = [self.class_names[label] for label in labels[:found].tolist()]
        return boxes[:found].cpu().numpy(), scores[:found].cpu().numpy(), names

    def _pad(self, points: Tensor) -> Tensor:
        """Add rows that are no points, up to the rows that the program asks for."""
        room = self.info.get('num_points')
        if room is None:
            room = len(points) + _PADDING
        elif len(points) > room:
            points = self._nearest(points[self._cells(points)[1]], room)
        return torch.cat(
            [points, points.new_full((room - len(points), points.shape[1]), torch.nan)]
        )

    def _nearest(self, points: Tensor, room: int) -> Tensor:
        """Refuse points in range that are too many, or drop the farthest."""
        surplus = len(points) - room
        if surplus > 0 and self.info['overflow'] == 'error':
            raise ValueError(
                f'the frame has {len(points)} points in range and the package room for {room}: '
                'export it with more --points, or with --overflow drop'
            )
        self.num_dropped_points += max(surplus, 0)
        distance = points[:, :2].square().sum(1)
        return points[distance.argsort(stable=True)[:room].sort().values]

    def _check_capacity(self, points: Tensor) -> None:
        """Refuse a frame with too many voxels before anything is computed."""
        capacity = self.info['capacity']
        if capacity is None or self.info['overflow'] == 'drop':
            return
        cells, is_inside = self._cells(points)
        voxels = len(torch.unique(cells[is_inside]))
        if voxels > capacity:
            raise ValueError(
                f'the frame has {voxels} voxels and the package a capacity of {capacity}: export '
                'it with a larger --capacity, or with --overflow drop'
            )

    def _cells(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the voxel that each point lies in, [P] int64, and whether it lies in one."""
        is_valid = (points.abs() <= self.info['largest']).all(1)
        lowest, highest = points.new_tensor(self.info['point_cloud_range']).chunk(2)
        size = points.new_tensor(self.info['voxel_size'])
        limit = ((highest - lowest) / size).round()
        index = ((points[:, :3] - lowest) / size).floor()
        is_inside = is_valid & ((index >= 0) & (index < limit)).all(1)
        x, y, z = torch.where(is_inside[:, None], index, 0).long().unbind(1)
        width, depth, _ = limit.long().tolist()
        return (z * depth + y) * width + x, is_inside

    def _count_invalid(self, points: Tensor) -> None:
        count = int((~(points.abs() <= self.info['largest']).all(1)).sum())
        if count and not self.num_dropped:
            warnings.warn(
                f'{count} points have NaN, infinite or absurd values and are left out; further '
                'ones are counted in `num_dropped` without a warning',
                stacklevel=3,
            )
        self.num_dropped += count
