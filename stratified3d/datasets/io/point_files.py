"""One sweep of points from a .bin, .npy, .pcd or .ply file; damaged files are refused."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

SUFFIXES = ('.bin', '.npy', '.pcd', '.ply')
_PLY_BYTES = {
    b'char': 1,
    b'uchar': 1,
    b'int8': 1,
    b'uint8': 1,
    b'short': 2,
    b'ushort': 2,
    b'int16': 2,
    b'uint16': 2,
    b'int': 4,
    b'uint': 4,
    b'int32': 4,
    b'uint32': 4,
    b'float': 4,
    b'float32': 4,
    b'double': 8,
    b'float64': 8,
}


def read_points(path: str | Path, load_dim: int | None = None) -> np.ndarray:
    """Read one sweep.

    Args:
        path: .bin (float32 rows), .npy ([P, >= 3]), .pcd or .ply (with or without an `intensity`
            attribute).
        load_dim: columns of a .bin file; default 5 for nuScenes' `.pcd.bin`, else 4 (KITTI).
    Returns:
        [P, 4] float32 x, y, z (m), intensity; further columns, such as a ring index, are left out.
        An empty .bin has no points.
    Raises:
        FileNotFoundError, ValueError: a missing, truncated or unknown file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no point file {path}')
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path}: points are read from {", ".join(SUFFIXES)} files')

    if path.suffix == '.bin':
        points = _read_bin(path, load_dim)
    elif path.suffix == '.npy':
        points = _read_npy(path)
    else:
        points = _read_open3d(path)

    intensity = points[:, 3:4] if points.shape[1] > 3 else np.zeros((len(points), 1))
    return np.hstack([points[:, :3], intensity]).astype(np.float32)


def _read_bin(path: Path, load_dim: int | None) -> np.ndarray:
    if not load_dim:
        load_dim = 5 if path.name.endswith('.pcd.bin') else 4
    size = path.stat().st_size
    if size % (4 * load_dim):
        raise ValueError(
            f'{path}: {size} bytes are not a whole number of points of {load_dim} float32; the '
            'file is truncated, or has another number of columns (load_dim)'
        )
    return np.fromfile(path, np.float32).reshape(-1, load_dim)


def _read_npy(path: Path) -> np.ndarray:
    try:
        points = np.load(path)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: empty, truncated or not an .npy file ({error})') from error
    if not isinstance(points, np.ndarray) or points.ndim != 2 or points.shape[1] < 3:
        found = getattr(points, 'shape', type(points).__name__)
        raise ValueError(f'{path}: contains {found}, points are an array [P, >= 3]')
    return points


def _read_open3d(path: Path) -> np.ndarray:
    import open3d  # takes seconds, and only these files need it

    _check_length(path)
    attributes = open3d.t.io.read_point_cloud(path).point
    if 'positions' not in attributes:
        raise ValueError(f'{path}: no points could be read; the file is empty or damaged')
    columns = [attributes['positions'].numpy()]
    if 'intensity' in attributes:
        columns.append(attributes['intensity'].numpy().reshape(-1, 1))
    return np.hstack(columns)


def _check_length(path: Path) -> None:
    """Refuse a .pcd or .ply file that is shorter than its header says.

    Open3D fills what is missing with arbitrary numbers.
    """
    content = path.read_bytes()
    is_ply = path.suffix == '.ply'
    end = re.search(rb'end_header\r?\n' if is_ply else rb'DATA \w+\r?\n', content)
    count = re.search(rb'element vertex (\d+)' if is_ply else rb'POINTS (\d+)', content)
    if end is None or count is None:
        raise ValueError(
            f'{path}: no points could be read; the file has no complete {path.suffix} header'
        )

    start = end.end()
    header = content[:start]
    body = content[start:]
    rows = int(count[1])
    columns = _column_bytes(header.split(b'\n'), is_ply)

    unit = 'bytes'
    found = len(body)
    expected = rows * sum(columns)
    if b'ascii' in header:
        unit = 'numbers'
        lines = body.split(b'\n')[:rows]
        found = sum(len(line.split()) for line in lines)
        expected = rows * len(columns)
    elif b'binary_compressed' in header:
        compressed = int.from_bytes(body[:4], 'little')
        expected = 8 + compressed  # two sizes, then the data

    if found < expected:
        raise ValueError(
            f'{path}: truncated: its header announces {expected} {unit}, {found} are there'
        )


def _column_bytes(header: list[bytes], is_ply: bool) -> list[int]:
    """Size of every column of a point row, from the header's lines."""
    if is_ply:
        kinds = [line.split()[1] for line in header if line.startswith(b'property')]
        return [_PLY_BYTES.get(kind, 0) for kind in kinds]
    sizes = _header_numbers(header, b'SIZE')
    counts = _header_numbers(header, b'COUNT') or [1] * len(sizes)
    return [size for size, count in zip(sizes, counts) for _ in range(count)]


def _header_numbers(header: list[bytes], name: bytes) -> list[int]:
    return [int(n) for line in header if line.startswith(name) for n in line.split()[1:]]
