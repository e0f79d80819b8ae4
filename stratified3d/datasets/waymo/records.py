"""What is converted of a Waymo dataset, segment by segment, and the info files and database that
list it."""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from stratified3d.resumable import atomic_write, file_lock, name_file

SPLITS = {
    'training': 'train',
    'validation': 'val',
    'testing': 'test',
}  # Waymo's folder: name of the info file
CLASSES = (
    'Car',
    'Pedestrian',
    'Cyclist',
)  # mmdet3d's; asking its WaymoDataset would cost each worker seconds
PATIENCE = 90.0  # s; NFS shows what other machines write after up to a minute


class Segment(NamedTuple):
    """A segment: Waymo's split and its name."""

    split: str
    name: str

    def __str__(self):
        return f'{self.split}/{self.name}'


class Files(NamedTuple):
    """Info files and database written, {segment: what its files do not have}, segments of earlier
    runs among them, and {segment: why one of an earlier run is not}."""

    paths: list[Path]
    gaps: dict[str, str]
    earlier: int
    lost: dict[str, str]


class Records:
    """Records of segments in <out>/.conversion; any number of processes, which need not know of
    each other, work on different segments of one folder."""

    def __init__(self, out: Path):
        self._out, self._folder = out, out / '.conversion'

    def begin(self) -> None:
        """Make the folder; sweep away what killed processes left, if nobody else is at work."""
        with name_file(self._folder):
            self._folder.mkdir(exist_ok=True)
        with file_lock(self._folder / 'working.lock', wait=False, if_unsupported=False) as is_alone:
            if not is_alone:
                return
            for folder in (self._folder, self._out):
                for split in SPLITS:
                    for partial in (folder / split).glob('*.partial'):
                        partial.unlink(missing_ok=True)
            for partial in self._out.glob('waymo_*.partial'):
                partial.unlink(missing_ok=True)
            for buffer in self._folder.glob('*/*.buffer'):
                shutil.rmtree(buffer, ignore_errors=True)

    def working(self) -> AbstractContextManager:
        """While this process converts segments."""
        return file_lock(self._folder / 'working.lock', is_shared=True)

    def claim(self, segment: Segment) -> AbstractContextManager[bool]:
        """While this process converts a segment: yields whether it may."""
        return file_lock(self._path(segment, 'lock'), wait=False)

    def buffer(self, segment: Segment) -> Path:
        """A folder for what waits while a segment is converted."""
        return self._path(segment, 'buffer')

    def prepare(self, segment: Segment) -> None:
        """Make the folders of its split; forget that an earlier run could not convert it."""
        for folder in (self._folder / segment.split, self._out / segment.split):
            with name_file(folder):
                folder.mkdir(exist_ok=True)
        self._path(segment, 'failed').unlink(missing_ok=True)

    def write(self, segment: Segment, record: dict) -> None:
        """It is converted: frames (entries of the info file), objects (of the database, by frame),
        gaps ({timestamp: what is absent})."""
        atomic_write(self._path(segment, 'pkl'), pickle.dumps(record))

    def fail(self, segment: Segment, problem: str) -> None:
        """It cannot be converted."""
        atomic_write(self._path(segment, 'failed'), problem.encode())

    def read(self, segment: Segment) -> dict | None:
        """What was written of it; None where that, or a point file, is missing."""
        path = self._path(segment, 'pkl')
        if not path.is_file():
            return None
        try:
            record = pickle.loads(path.read_bytes())
        except (EOFError, pickle.UnpicklingError):  # the machine died before it was on disk
            path.unlink(missing_ok=True)
            return None
        folder = self._out / segment.split
        if not all(
            (folder / frame['lidar_points']['lidar_path']).is_file() for frame in record['frames']
        ):
            path.unlink(missing_ok=True)
            return None
        return record

    def pending(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that are neither converted nor failed."""
        # listed, not asked for one by one: NFS remembers for long that a file was not there
        done = {(split, path.name) for split in SPLITS for path in (self._folder / split).glob('*')}
        return [
            segment
            for segment in segments
            if not {(segment.split, f'{segment.name}.{kind}') for kind in ('pkl', 'failed')} & done
        ]

    def wait(self, segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
        """Segments that others still convert, and segments that nobody does: what another machine
        wrote may take a while to be seen here, so those are waited for first."""
        end, told = time.monotonic() + PATIENCE, False
        while pending := self.pending(segments):
            with file_lock(self._folder / 'working.lock', wait=False, if_unsupported=False) as is_alone:
                if not is_alone:
                    return pending, []
            if time.monotonic() > end:
                return [], pending
            if not told:
                tqdm.write(
                    f'waiting up to {PATIENCE:.0f} s for {len(pending)} segments that other processes may have '
                    f'just written, {pending[0]} first'
                )
                told = True
            time.sleep(min(PATIENCE / 10, 1.0))
        return [], []

    def write_files(self, segments: Sequence[Segment], has_database: bool) -> Files:
        """Info files and database of all that is recorded in the splits of these segments.

        Raises:
            OSError: see `atomic_write`.
        """
        files = Files([], {}, 0, {})
        known = set(segments)
        with file_lock(self._folder / 'writing.lock'):
            for number, split in enumerate(SPLITS):
                if not any(segment.split == split for segment in segments):
                    continue
                found = []
                for name in sorted(path.stem for path in (self._folder / split).glob('*.pkl')):
                    segment = Segment(split, name)
                    if record := self.read(segment):
                        found.append(record)
                        files = files._replace(earlier=files.earlier + (segment not in known))
                        if record.get('gaps'):
                            files.gaps[str(segment)] = _describe_gaps(record)
                    else:
                        files.lost[str(segment)] = (
                            'was converted, but not all its point files are there any more; '
                            'convert it again'
                        )
                for path, content in _make_files(found, number, split, has_database).items():
                    atomic_write(self._out / path, pickle.dumps(content), is_shared=True)
                    files.paths.append(self._out / path)
        return files

    def _path(self, segment: Segment, kind: str) -> Path:
        return self._folder / segment.split / f'{segment.name}.{kind}'


def _make_files(
    records: list[dict], number: int, split: str, has_database: bool
) -> dict[str, dict]:
    """{name: content} of a split's files."""
    if not records:
        return {}
    frames, groups = [], {name: [] for name in CLASSES}
    for i, record in enumerate(records):
        for j, info in enumerate(record['frames']):
            # numbers as mmdet3d gives them: split, segment, frame
            frames.append(dict(info, sample_idx=number * 1_000_000 + i * 1000 + j))
            for entry in record['objects'].get(j, []):
                groups[entry['name']].append(
                    dict(
                        entry,
                        image_idx=frames[-1]['sample_idx'],
                        difficulty=0,
                        box3d_lidar=np.array(entry['box3d_lidar'], np.float32),
                    )
                )
    meta = dict(
        dataset='waymo',
        version='waymo_v2',
        info_version='mmdet3d_v1.4',
        segments=len(records),
        categories={name: label for label, name in enumerate(CLASSES)},
    )
    files = {f'waymo_infos_{SPLITS[split]}.pkl': dict(metainfo=meta, data_list=frames)}
    if split == 'training' and has_database:
        for group, entry in enumerate(entry for name in CLASSES for entry in groups[name]):
            entry['group_id'] = group
        files['waymo_dbinfos_train.pkl'] = groups
    return files


def _describe_gaps(record: dict) -> str:
    """In words: which frames have no point and are left out, which lack what."""
    kept = {frame['timestamp'] for frame in record['frames']}
    by_what = {}
    for stamp, absent in sorted(record['gaps'].items()):
        what = (
            f'without {", ".join(absent)}' if stamp in kept else 'left out, without a LiDAR point'
        )
        by_what.setdefault(what, []).append(stamp)
    return '; '.join(
        f'{what}: frame{"s" if len(stamps) > 1 else ""} {", ".join(map(str, stamps))}'
        for what, stamps in by_what.items()
    )
