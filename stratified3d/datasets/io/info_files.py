"""Info files of mmdet3d: reading them, and checking before a run that a dataset is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stratified3d.datasets.io.safe_pickle import read_plain_pickle


def read_info_file(path: str | Path) -> dict:
    """Read an info file of version 2: metainfo and data_list.

    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one, one of another kind, or one that
            would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no info file {path}: {hint(path)}')
    try:
        content = read_plain_pickle(path)
        for frame in content['data_list']:
            frame['lidar_points']['lidar_path']  # raises if it is absent
        content['metainfo'].get('categories')
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: damaged, or not an mmdet3d info file of version 2 with metainfo and '
            f'data_list ({type(error).__name__}: {error}); delete it and {hint(path)}'
        ) from error
    if not content['data_list']:
        raise ValueError(f'{path}: contains no frames')
    return content


def check_files(settings: dict) -> None:
    """Check that the info files and ground-truth databases exist that a dataset's config names.

    Raises:
        FileNotFoundError: one is missing; the message says which command writes it.
    """
    for path in info_paths(settings):
        if not path.is_file():
            raise FileNotFoundError(f'there is no info file {path}: {hint(path)}')
    for part in _parts(settings):
        for transform in part.get('pipeline', []):
            database = transform.get('db_sampler', {}).get('info_path')
            if database and not os.path.isfile(database):
                raise FileNotFoundError(
                    f'there is no ground-truth database {database}: {hint(Path(database))}; a '
                    'train_pipeline without ObjectSample needs none'
                )


def info_paths(settings: dict) -> list[Path]:
    """Info files of the config of a dataset, wrapped or not."""
    return [
        Path(part.get('data_root') or '', part['ann_file'])
        for part in _parts(settings)
        if part.get('ann_file')
    ]


def check_dataset(dataset: Any, classes: list[str] | None) -> None:
    """Check the order of a dataset's classes, and that the points of its first frame are there.

    Args:
        dataset: of mmdet3d, built; wrapped or not.
        classes: what the model's labels count; None for a model that does not tell.
    Raises:
        FileNotFoundError, ValueError: names what is missing or contradicts itself.
    """
    if hasattr(dataset, 'dataset'):
        check_dataset(dataset.dataset, classes)
        return
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            check_dataset(part, classes)
        return

    name = getattr(dataset, 'ann_file', type(dataset).__name__)
    if not len(dataset):
        raise ValueError(f'{name}: contains no frames that the dataset would use')
    _check_model_classes(dataset, name, classes)
    _check_label_order(dataset, name)
    _check_first_frame(dataset, name)


def _check_first_frame(dataset: Any, name: str) -> None:
    """Raise FileNotFoundError if points or sweeps of the first frame are missing."""
    if not hasattr(dataset, 'get_data_info'):
        return
    info = dataset.get_data_info(0)
    for part in [info, *info.get('lidar_sweeps', [])]:
        if 'lidar_points' not in part:
            continue
        path = part['lidar_points']['lidar_path']
        if not os.path.isfile(path):
            raise FileNotFoundError(missing_points(path, name))


def missing_points(path: str, info_file: str = 'the info file') -> str:
    """Error message for a missing point file that an info file names."""
    return (
        f'there is no point file {path}, which {info_file} names: unpack all of the dataset, its '
        'sweeps too, or correct data_root and data_prefix'
    )


def _check_model_classes(dataset: Any, name: str, classes: list[str] | None) -> None:
    """Raise unless the dataset and the model number the same classes."""
    own = dataset.metainfo.get('classes')
    if classes is not None and own is not None and list(own) != classes:
        raise ValueError(
            f"{name}: its labels would count the classes {list(own)}, the model's head counts "
            f'{classes}: set `metainfo=dict(classes=...)` of the dataset to the order of the '
            "head's tasks"
        )


def _check_label_order(dataset: Any, name: str) -> None:
    """Raise unless the info file numbers classes as the dataset's type reads them."""
    kind = type(dataset)
    # a part of a dataset, of `num_batch_per_epoch`, has none
    known = list(getattr(kind, 'METAINFO', {}).get('classes', ()))
    categories = dataset.metainfo.get('categories') or {}
    stored = {key: label for key, label in categories.items() if label >= 0}
    for key, label in stored.items():
        if key in known and known.index(key) != label:
            order = sorted(stored, key=stored.__getitem__)
            raise ValueError(
                f'{name}: numbers the class {key} as {label}, {kind.__name__} reads '
                f'{known.index(key)}: it was written for another order of the classes, {order}; '
                'write it anew with tools/create_data.py'
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
        return (
            f'`python tools/convert_custom.py --out {path.parent} ...` writes it from points and '
            'boxes of your own'
        )
    return (
        f'`python tools/create_data.py {path.parent}` writes it from nuScenes tables '
        f'(`python tools/simulate.py {path.parent}` makes a simulated dataset)'
    )
