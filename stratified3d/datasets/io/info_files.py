"""Info files of mmdet3d: reading them, and finding out before a run whether a dataset is all
there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    ImportError,
    MemoryError,
)


def read_info_file(path: str | Path) -> dict:
    """Read an info file of version 2: metainfo and data_list.

    An info file is a pickle and runs what it holds, as it does in mmdet3d: take them from nobody
        you do not trust.

    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no info file {path}: {hint(path)}')
    try:
        content = pickle.loads(path.read_bytes())
        for frame in content['data_list']:
            frame['lidar_points']['lidar_path']
        content['metainfo'].get('categories')
    except _DAMAGED as error:
        raise ValueError(
            f'{path}: no mmdet3d info file of version 2 with metainfo and data_list, or damaged '
            f'({type(error).__name__}: {error}); delete it and {hint(path)}'
        ) from error
    if not content['data_list']:
        raise ValueError(f'{path}: contains no frames')
    return content


def check_files(settings: dict) -> None:
    """Look for the files that the config of a dataset names: info files and ground-truth
    databases.

    Raises:
        FileNotFoundError: one is missing; says which command makes it.
    """
    for path in info_paths(settings):
        if not path.is_file():
            raise FileNotFoundError(f'there is no info file {path}: {hint(path)}')
    for part in _parts(settings):
        for transform in part.get('pipeline', []):
            database = transform.get('db_sampler', {}).get('info_path')
            if database and not os.path.isfile(database):
                raise FileNotFoundError(
                    f'there is no ground-truth database {database}: {hint(Path(database))}; a train_pipeline '
                    'without ObjectSample needs none'
                )


def info_paths(settings: dict) -> list[Path]:
    """Where the config of a dataset, wrapped or not, has its info files."""
    return [
        Path(part.get('data_root') or '', part['ann_file'])
        for part in _parts(settings)
        if part.get('ann_file')
    ]


def check_dataset(dataset: object, classes: list[str] | None) -> None:
    """Check a built dataset: the order of its classes, and that its first frame's points and
    sweeps are there.

    Args:
        dataset: of mmdet3d, wrapped or not.
        classes: what the model's labels count; None for a model that does not tell.
    Raises:
        FileNotFoundError, ValueError: names what is missing or contradicts itself.
    """
    if hasattr(dataset, 'dataset'):
        return check_dataset(dataset.dataset, classes)
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            check_dataset(part, classes)
        return None
    name = getattr(dataset, 'ann_file', type(dataset).__name__)
    if not len(dataset):
        raise ValueError(f'{name}: contains no frames that the dataset would use')
    _check_classes(dataset, name, classes)
    info = dataset.get_data_info(0) if hasattr(dataset, 'get_data_info') else {}
    clouds = [
        part['lidar_points']['lidar_path']
        for part in [info, *info.get('lidar_sweeps', [])]
        if 'lidar_points' in part
    ]
    for path in clouds:
        if not os.path.isfile(path):
            raise FileNotFoundError(missing_points(path, name))


def missing_points(path: str, info_file: str = 'the info file') -> str:
    """What to say of a point file that an info file names and that is not there."""
    return (
        f'there is no point file {path}, which {info_file} names: unpack all of the dataset, its sweeps too, or '
        'correct data_root and data_prefix'
    )


def _check_classes(dataset: object, name: str, classes: list[str] | None) -> None:
    own = dataset.metainfo.get('classes')
    if classes is not None and own is not None and list(own) != classes:
        raise ValueError(
            f"{name}: its labels would count the classes {list(own)}, the model's head counts {classes}: "
            "set `metainfo=dict(classes=...)` of the dataset to the order of the head's tasks"
        )
    known = list(type(dataset).METAINFO.get('classes', ()))
    stored = {
        key: label
        for key, label in (dataset.metainfo.get('categories') or {}).items()
        if label >= 0
    }
    wrong = [key for key, label in stored.items() if key in known and known.index(key) != label]
    if wrong:
        raise ValueError(
            f'{name}: numbers the class {wrong[0]} as {stored[wrong[0]]}, {type(dataset).__name__} reads '
            f'{known.index(wrong[0])}: it was written for another order of the classes, '
            f'{sorted(stored, key=stored.get)}; write it anew with tools/create_data.py'
        )


def _parts(settings: dict) -> Iterator[dict]:
    """The config of a dataset without its wrappers; several where they are joined."""
    if 'dataset' in settings:
        yield from _parts(settings['dataset'])
    elif 'datasets' in settings:
        for part in settings['datasets']:
            yield from _parts(part)
    else:
        yield settings


def hint(path: Path) -> str:
    """Which command writes an info file or a ground-truth database of this name."""
    if path.name.startswith('waymo_'):
        return f'`python tools/waymo_convert.py SRC {path.parent}` writes it from perception v2'
    if path.name.startswith('infos_'):
        return f'`python tools/convert_custom.py --out {path.parent} ...` writes it from points and boxes of your own'
    return (
        f'`python tools/create_data.py {path.parent}` writes it from nuScenes tables (`python tools/simulate.py '
        f'{path.parent}` makes a simulated set)'
    )
