"""Rows of float32 without a header (.bin): how many columns they have is told from the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratified3d.datasets.io.formats.columns import Columns, PointFileError, name_rows
from stratified3d.datasets.io.plausibility import find_fault, sample_rows

_WIDTHS = range(3, 13)
_SAMPLE = 5_000  # rows by which widths are compared
_MANY = 400  # numbers, from which the file's name is overruled
_ASK = 'give load_dim, the number of columns (--load-dim of commands)'


def read_bin(path: Path, load_dim: int | None = None) -> Columns:
    """Read rows of float32.

    Args:
        path: of the file.
        load_dim: columns; None: 5 for nuScenes' `.pcd.bin`, else 4 (KITTI), unless the numbers
            show another number of columns.
    Raises:
        PointFileError: truncated, not float32, or the number of columns cannot be told.
    """
    default = 5 if path.name.endswith('.pcd.bin') else 4
    candidates = list(_WIDTHS)
    if load_dim is not None:
        default, candidates = load_dim, [load_dim]
    widths = _fitting_widths(path, candidates, default)
    words = np.fromfile(path, np.float32)
    if _is_float64(words):
        raise PointFileError(
            f'{path}: it was probably written from float64, the default of numpy: write '
            'points.astype(np.float32).tofile(...)'
        )
    faults = {width: find_fault(words.reshape(-1, width)[:, :3]) for width in widths}
    plausible = [width for width in widths if not faults[width]]
    if not plausible:
        fault = faults.get(default) or faults[widths[0]]
        raise PointFileError(f'{path}: {fault}; {_likely_remedy(words)}')
    width = plausible[0] if load_dim else _choose_width(path, words, plausible, default)
    return name_rows(path, words.reshape(-1, width))


def _fitting_widths(path: Path, widths: list[int], default: int) -> list[int]:
    """Those numbers of columns by which the file has whole rows."""
    if default < 3:
        raise PointFileError(f'{path}: load_dim is {default}, but x, y and z are three columns')
    size = path.stat().st_size
    fitting = [width for width in widths if size % (4 * width) == 0]
    if not fitting:
        raise PointFileError(
            f'{path}: {size} bytes are not a whole number of points of {default} float32; the '
            f'file is truncated, or has another number of columns: {_ASK}'
        )
    return fitting


def _choose_width(path: Path, words: np.ndarray, widths: list[int], default: int) -> int:
    """The number of columns by which the columns differ most from each other."""
    orders = {}
    for width in widths:
        table = _sample(words, width)
        if not any(_repeats(table, shorter) for shorter in widths if shorter < width):
            orders[width] = _disorder(table)

    # by chance the columns of few points differ
    count = max(len(words), 1)
    margin = 0.01 + 0.5 / np.sqrt(count) + 10 / count
    best = min(orders.values())
    likely = [width for width, disorder in orders.items() if disorder <= best + margin]

    if default in likely:
        return default
    if len(likely) == 1 and best < 1 - margin and count >= _MANY:
        return likely[0]
    candidates = sorted({*likely, *(width for width in widths if width == default)})
    raise PointFileError(
        f'{path}: its {words.nbytes} bytes may be points of '
        f'{" or ".join(map(str, candidates))} float32, and the numbers do not show it for certain: '
        f'{_ASK}'
    )


def _sample(words: np.ndarray, width: int) -> np.ndarray:
    """Some rows of a width, with large numbers drawn together."""
    rows = sample_rows(words.reshape(-1, width), _SAMPLE).astype(np.float64)
    return np.arcsinh(np.nan_to_num(rows, posinf=0, neginf=0))


def _disorder(table: np.ndarray) -> float:
    """Mean spread of the columns, as a share of the spread of all numbers.

    A wrong number of columns mixes x, y, z and intensity in every column, which gives 1.
    """
    spread = table.std()
    if len(table) < 2 or spread == 0:
        return 1.0
    return float(table.std(0, ddof=1).mean() / spread)


def _repeats(table: np.ndarray, width: int) -> bool:
    """Whether rows are several points of a smaller width, whose x and y are then alike.

    Sensors that fire in turn upwards and downwards make z differ from point to point.
    """
    if table.shape[1] % width or len(table) < 2:
        return False
    starts = table.reshape(len(table), -1, width)[:, :, :2]
    within = starts.std(0).mean(0)
    overall = starts.std((0, 1))
    return bool(np.all(within > 0.9 * overall))


def _is_float64(words: np.ndarray) -> bool:
    """Whether pairs of words are coordinates and first words alone are not.

    The first half of a float64 is the end of its digits: zeros, or a number of any size.
    """
    doubles = words[: len(words) // 2 * 2][: 8 * _SAMPLE].view(np.float64)
    doubles = doubles[np.isfinite(doubles) & (doubles != 0)]
    if not len(doubles):
        return False
    halves = doubles.view(np.float32)[::2]
    return _share_of_coordinates(doubles) > 0.99 and _share_of_coordinates(halves) < 0.4


def _share_of_coordinates(numbers: np.ndarray) -> float:
    """Share of numbers that are usual beside 0."""
    sizes = np.abs(numbers)
    return float(np.mean((sizes > 1e-9) & (sizes < 1e8)))


def _likely_remedy(words: np.ndarray) -> str:
    """How a file was probably written that does not contain float32."""
    integers = np.abs(words.view(np.int32).astype(np.int64))
    if len(integers) and np.mean(integers < 10_000_000) > 0.99:
        return (
            'it was probably written from integers (int32): scale them to meters and write '
            'points.astype(np.float32).tofile(...)'
        )
    return (
        'a .bin file is rows of float32 x, y, z, intensity: write '
        f'points.astype(np.float32).tofile(...); or {_ASK}'
    )
