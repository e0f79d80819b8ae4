"""One small point file of every format that is read, to test readers with."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_PCD = (
    '# .PCD v0.7\nVERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n'
)
_PLY = 'comment any\nelement vertex {}\n' + ''.join(
    f'property float {name}\n' for name in ('x', 'y', 'z', 'intensity')
)


def random_sweep(count: int, seed: int = 0) -> np.ndarray:
    """Points on flat ground around a sensor.

    Args:
        count: number of points P.
        seed: of the random numbers.
    Returns:
        [P, 4] float32 x, y, z (m), intensity (whole numbers 0 to 255).
    """
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, count)
    distance = rng.uniform(3, 60, count)
    height = rng.normal(-1.7, 0.3, count)
    intensity = rng.integers(0, 256, count)
    columns = [distance * np.cos(angle), distance * np.sin(angle), height, intensity]
    return np.stack(columns, 1).round(3).astype(np.float32)


def _write_npz(path: Path, points: np.ndarray) -> None:
    np.savez_compressed(path, points=points[:, :3], intensity=points[:, 3])


def _write_pcd(path: Path, points: np.ndarray, encoding: str, body: bytes) -> None:
    count = len(points)
    header = f'{_PCD}WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\n'
    path.write_bytes(f'{header}DATA {encoding}\n'.encode() + body)


def _write_compressed_pcd(path: Path, points: np.ndarray) -> None:
    tensors: Any = import_module('open3d').t  # takes seconds
    cloud = tensors.geometry.PointCloud(points[:, :3].copy())
    cloud.point['intensity'] = points[:, 3:4].copy()
    tensors.io.write_point_cloud(str(path), cloud, compressed=True)


def _write_ply(path: Path, points: np.ndarray, encoding: str, body: bytes) -> None:
    header = f'ply\nformat {encoding} 1.0\n{_PLY.format(len(points))}end_header\n'
    path.write_bytes(header.encode() + body)


def _lines(points: np.ndarray, delimiter: str = ' ') -> bytes:
    rows = [delimiter.join(f'{number:.9g}' for number in row) for row in points]
    return ''.join(f'{row}\n' for row in rows).encode()


def _write_text(path: Path, points: np.ndarray, names: str, delimiter: str) -> None:
    path.write_bytes(names.encode() + _lines(points, delimiter))


def _write_feather(path: Path, points: np.ndarray) -> None:
    import pyarrow.feather

    types = (np.float32, np.float32, np.float32, np.uint8)
    columns = {
        name: column.astype(kind)
        for name, column, kind in zip(('x', 'y', 'z', 'intensity'), points.T, types)
    }
    columns['laser_number'] = np.arange(len(points)) % 64
    pyarrow.feather.write_feather(pyarrow.table(columns), path, compression='lz4')


def _write_las(path: Path, points: np.ndarray) -> None:
    import laspy

    header = laspy.LasHeader(point_format=3, version='1.2')
    header.scales = np.full(3, 0.001)
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z, cloud.intensity = points.T
    cloud.write(path)


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    'kitti.bin': lambda path, points: points.tofile(path),
    'nuscenes.pcd.bin': lambda path, points: np.pad(points, ((0, 0), (0, 1))).tofile(path),
    'array.npy': np.save,
    'arrays.npz': _write_npz,
    'ascii.pcd': lambda path, points: _write_pcd(path, points, 'ascii', _lines(points)),
    'binary.pcd': lambda path, points: _write_pcd(path, points, 'binary', points.tobytes()),
    'compressed.pcd': _write_compressed_pcd,
    'ascii.ply': lambda path, points: _write_ply(path, points, 'ascii', _lines(points)),
    'little.ply': lambda path, points: _write_ply(
        path, points, 'binary_little_endian', points.tobytes()
    ),
    'big.ply': lambda path, points: _write_ply(
        path, points, 'binary_big_endian', points.astype('>f4').tobytes()
    ),
    'plain.txt': lambda path, points: _write_text(path, points, '', ' '),
    'named.csv': lambda path, points: _write_text(path, points, 'x,y,z,intensity\n', ','),
    'semicolons.csv': lambda path, points: _write_text(path, points, '//X;Y;Z;Remission\n', ';'),
    'argoverse.feather': _write_feather,
    'survey.las': _write_las,
    'survey.laz': _write_las,
}


def available_samples() -> list[str]:
    """Names of WRITERS that can be written here; .las and .laz need laspy and lazrs."""
    has_laspy = find_spec('laspy') is not None and find_spec('lazrs') is not None
    return [name for name in WRITERS if has_laspy or not name.startswith('survey')]
