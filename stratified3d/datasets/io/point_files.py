"""One sweep of points from a file of any common format; what is no sweep is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stratified3d.datasets.io.formats.array_files import read_npy, read_npz
from stratified3d.datasets.io.formats.bin_files import read_bin
from stratified3d.datasets.io.formats.columns import Columns, PointFileError, stack_points
from stratified3d.datasets.io.formats.feather_files import read_feather
from stratified3d.datasets.io.formats.las_files import read_las
from stratified3d.datasets.io.formats.pcd_files import read_pcd
from stratified3d.datasets.io.formats.ply_files import read_ply
from stratified3d.datasets.io.formats.text_files import read_text
from stratified3d.datasets.io.plausibility import find_fault, find_integer_fault

_READERS: dict[str, Callable[[Path], Columns]] = {
    '.bin': read_bin,
    '.npy': read_npy,
    '.npz': read_npz,
    '.pcd': read_pcd,
    '.ply': read_ply,
    '.txt': read_text,
    '.csv': read_text,
    '.feather': read_feather,
    '.las': read_las,
    '.laz': read_las,
}
SUFFIXES = tuple(_READERS)
_BAGS = ('.bag', '.db3', '.mcap')


def frame_name(path: str | Path) -> str:
    """Return the name of the frame in a point file: the file's, without .pcd.bin or its suffix."""
    return Path(path).stem.removesuffix('.pcd')


def read_points(path: str | Path, load_dim: int | None = None) -> np.ndarray:
    """Read one sweep.

    Args:
        path: .bin (rows of float32), .npy, .npz, .pcd, .ply, .txt, .csv, .feather (Argoverse 2),
            .las or .laz.
        load_dim: columns of a .bin file; None: 5 for nuScenes' `.pcd.bin`, else 4 (KITTI), unless
            the numbers show another number of columns.
    Returns:
        [P, 4] float32 x, y, z, intensity, in the units of the file; further columns, such as a ring
        index, are left out. A file without intensity gives 0 and a warning. An empty .bin has no
        points.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged or unknown file, or numbers that are no points; says what is wrong and
            the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no point file {path}')
    suffix = path.suffix.lower()
    if suffix in _BAGS:
        raise PointFileError(
            f'{path}: recordings of ROS are not read; export the messages of the point topic as '
            '.pcd files, with ROS 1 by `rosrun pcl_ros bag_to_pcd FILE TOPIC FOLDER`, else by '
            '`ros2 run pcl_ros pointcloud_to_pcd` while `ros2 bag play FILE` runs'
        )
    if suffix not in SUFFIXES:
        raise PointFileError(f'{path}: points are read from {", ".join(SUFFIXES)} files')

    columns = read_bin(path, load_dim) if suffix == '.bin' else _READERS[suffix](path)
    points = stack_points(path, columns)
    named = {name.strip().lower(): column for name, column in columns.items()}
    fault = find_integer_fault([named[name] for name in 'xyz'])
    del columns, named  # as large as the points
    fault = fault or find_fault(points[:, :3], may_be_missing=suffix == '.pcd')
    if fault:
        raise PointFileError(f'{path}: {fault}')
    return points
