"""The folders of a nuScenes-format dataset: which versions are there, whether all files are, and a
folder beside a dataset that cannot be written."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_SHOWN = 3  # names of missing files in a message


def list_versions(root: str | Path) -> list[str]:
    """Return the versions of a dataset's folder: its subfolders with a table of scenes."""
    return sorted(path.parent.name for path in Path(root).glob('*/scene.json'))


def read_scenes(root: str | Path, version: str) -> dict[str, int]:
    """Return the number of keyframes of each scene of a version, by name.

    Raises:
        FileNotFoundError: there is no such version; the message names those that are there.
        ValueError: its table of scenes is damaged.
    """
    root = Path(root)
    path = root / version / 'scene.json'
    if not path.parent.is_dir():
        others = [name for name in list_versions(root) if name != version]
        if others:
            raise FileNotFoundError(
                f'{path.parent}: no nuScenes tables there, but of {", ".join(others)}: add '
                f'--version {others[0]}'
            )
        raise FileNotFoundError(
            f'{path.parent}: no nuScenes tables there; `python tools/simulate.py {root}` makes a '
            'simulated dataset, the real one is unpacked so that its v1.0-* folders lie in the root'
        )
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: this table is missing; unpack the archive of the {version} metadata again'
        )
    try:
        return {scene['name']: scene['nbr_samples'] for scene in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: damaged ({error}); unpack the archive of the {version} metadata again'
        ) from error


def link_dataset(root: str | Path, out: str | Path) -> Path:
    """Make a folder that a dataset is prepared in without writing to the dataset itself.

    It gets links to everything in the dataset's folder; training takes it as the data root.

    Returns:
        The folder: `out`, or `root` where they are the same.
    Raises:
        FileNotFoundError: there is no such dataset.
        FileExistsError: something else in `out` has the name of a part of the dataset.
        OSError: a folder that cannot be written, or a file system without links.
    """
    root, out = Path(root).resolve(), Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f'there is no folder {root}')
    if out.is_dir() and out.samefile(root):
        return out
    out.mkdir(parents=True, exist_ok=True)
    for part in sorted(root.iterdir()):
        link = out / part.name
        is_result = part.suffix == '.pkl' or part.name.endswith('_gt_database')
        if (
            is_result
            or part.resolve() == out.resolve()
            or (link.is_symlink() and link.resolve() == part.resolve())
        ):
            continue
        if link.is_symlink() or link.exists():
            raise FileExistsError(
                f'{link} is not a link to {part}: move it away, or take another --out-dir'
            )
        link.symlink_to(part)
    return out


def check_files(root: Path, paths: Iterable[str]) -> None:
    """Raise FileNotFoundError unless all files are there; the message counts them by folder.

    Folders are listed once, which takes seconds for the whole of nuScenes.

    Args:
        root: the dataset.
        paths: of point files, in the dataset's folder.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, _, name = path.rpartition('/')
        wanted[folder].add(name)
    missing: dict[str, list[str]] = {}
    for folder, names in sorted(wanted.items()):
        place = root / folder
        there = set(os.listdir(place)) if place.is_dir() else set()
        if names - there:
            missing[folder] = sorted(names - there)
    if not missing:
        return
    count, total = (sum(map(len, files.values())) for files in (missing, wanted))
    lines = [f'{root}: {count} of {total} point files are missing:']
    for folder, absent in missing.items():
        of = f'{len(absent)} of {len(wanted[folder])}'
        lines.append(f'  {folder}/: {of}, such as {", ".join(absent[:_SHOWN])}')
    lines.append('unpack all of the archives, those of the sweeps too')
    if all(folder.startswith('sweeps/') for folder in missing):
        lines[-1] += '; or go on with keyframes only: --max-sweeps 0 --sweeps 0'
    raise FileNotFoundError('\n'.join(lines))
