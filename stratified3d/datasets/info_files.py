"""Info files of mmdet3d: reading them, and finding out before a run whether a data set is all there."""
from __future__ import annotations

import pickle
from pathlib import Path

_DAMAGED = (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError, ImportError,
            MemoryError)


def read_info_file(path: str | Path) -> dict:
    """Read an info file of version 2: metainfo and data_list.

    An info file is a pickle and runs what it holds, as it does in mmdet3d: take them from nobody you do not trust.

    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no info file {path}: {_remedy(path)}')
    try:
        content = pickle.loads(path.read_bytes())
        for frame in content['data_list']:
            frame['lidar_points']['lidar_path']
        content['metainfo'].get('categories')
    except _DAMAGED as error:
        raise ValueError(f'{path}: no mmdet3d info file of version 2 with metainfo and data_list, or damaged '
                         f'({type(error).__name__}: {error}); delete it and {_remedy(path)}') from error
    return content


def missing_points(path: str, info_file: str = 'the info file') -> str:
    """What to say of a point file that an info file names and that is not there."""
    return (f'there is no point file {path}, which {info_file} names: unpack all of the data set, its sweeps too, or '
            'correct data_root and data_prefix')


def _remedy(path: Path) -> str:
    return (f'`python tools/create_data.py {path.parent}` writes it from nuScenes tables (`python tools/simulate.py '
            f'{path.parent}` makes a simulated set)')
