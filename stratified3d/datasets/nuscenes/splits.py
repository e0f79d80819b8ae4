"""Which scenes of a nuScenes-format dataset are for training and which for validation."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nuscenes.utils import splits

Splits = dict[str, list[str]]  # names of scenes by split

OFFICIAL: dict[str, Splits] = {
    'v1.0-mini': dict(train=splits.mini_train, val=splits.mini_val),
    'v1.0-trainval': dict(train=splits.train, val=splits.val),
    'v1.0-test': dict(test=splits.test),
}


def read_splits(path: str | Path) -> Splits:
    """Read a file of splits of one's own: {"train": ["scene-a", ...], "val": [...]}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, a scene is in two splits, or a split is neither train,
            val nor test.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file of splits {path}')
    expected = 'expected {"train": ["scene-a", ...], "val": ["scene-b", ...]}'
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path}: not JSON ({error}); {expected}') from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{path}: {expected}')
    seen: dict[str, str] = {}
    for split, names in content.items():
        if split not in ('train', 'val', 'test'):
            raise ValueError(f"{path}: there is no split '{split}': train, val and test are known")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f'{path}: {split} is not a list of names of scenes; {expected}')
        for name in names:
            if name in seen:
                raise ValueError(f'{path}: {name} is in {seen[name]} and again in {split}')
            seen[name] = split
    return content


def share_scenes(names: list[str], val_share: float) -> Splits:
    """Split scenes by share: the last ones by name are for validation, at least one of each kind.

    Scenes that follow each other often show the same place; a mixture would be easier to score on.

    Raises:
        ValueError: a share that is not between 0 and 1, or fewer than two scenes.
    """
    if not 0 < val_share < 1:
        raise ValueError(f'--val-share is between 0 and 1, not {val_share}')
    if len(names) < 2:
        raise ValueError(f'{len(names)} scenes cannot be split: training and validation need one')
    ordered = sorted(names)
    count = min(max(math.floor(val_share * len(ordered) + 0.5), 1), len(ordered) - 1)
    return dict(train=ordered[:-count], val=ordered[-count:])


def choose_splits(
    names: list[str], version: str, splits_file: str | Path | None, val_share: float | None
) -> Splits | None:
    """Return the splits that the options ask for, or None for the official ones.

    Args:
        names: of the scenes of the version.
        version: for messages.
        splits_file: see `read_splits`.
        val_share: see `share_scenes`.
    Raises:
        ValueError: both are given, or a scene of the file is not there.
    """
    if splits_file is not None and val_share is not None:
        raise ValueError('--splits names the scenes of each split, --val-share a share: give one')
    if val_share is not None:
        return share_scenes(names, val_share)
    if splits_file is None:
        return None
    own = read_splits(splits_file)
    for split, scenes in own.items():
        unknown = sorted(set(scenes) - set(names))
        if unknown:
            raise ValueError(
                f'{splits_file}: {split} names {unknown[0]}, which {version} does not have; it has '
                f'{name_some(names)}'
            )
    return own


def name_some(names: list[str]) -> str:
    """Return the first names of many, for a message."""
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(sorted(names)[:3])}{more}'
