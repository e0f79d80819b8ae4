"""Records of the converted segments of a Waymo dataset, and the info files and database of them."""

from __future__ import annotations

import pickle
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from stratified3d.datasets.io.safe_pickle import DamagedPickle, read_plain_pickle
from stratified3d.resumable import atomic_write, file_lock, name_file

# Waymo's folder: name of the info file
SPLITS = {'training': 'train', 'validation': 'val', 'testing': 'test'}
# mmdet3d's; asking its WaymoDataset would cost each worker seconds
CLASSES = ('Car', 'Pedestrian', 'Cyclist')
PATIENCE = 90.0  # s; NFS shows what other machines write after up to a minute


class Segment(NamedTuple):
    """A segment: Waymo's split and its name."""

    split: str
    name: str

    def __str__(self):
        return f'{self.split}/{self.name}'


class Files(NamedTuple):
    """Info files and database that were written.

    Attributes:
        paths: of all files.
        gaps: {segment: what its files do not have}.
        earlier: number of segments of earlier runs among them.
        lost: {segment: why one of an earlier run is not among them}.
    """

    paths: list[Path]
    gaps: dict[str, str]
    earlier: int
    lost: dict[str, str]


class Records:
    """Records of segments in <out>/.conversion.

    Any number of processes work on different segments of one folder; they need not know of each
    other.
    """

    def __init__(self, out: Path):
        self._out = out
        self._folder = out / '.conversion'

    def begin(self) -> None:
        """Make the folder; delete what killed processes left, if no other process is working."""
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
        """Lock to hold while this process converts segments."""
        return file_lock(self._folder / 'working.lock', is_shared=True)

    def acquire(self, segment: Segment) -> AbstractContextManager[bool]:
        """Lock to hold while this process converts a segment; yields whether it is held."""
        return file_lock(self._path(segment, 'lock'), wait=False)

    def buffer(self, segment: Segment) -> Path:
        """Folder for rows that wait while a segment is converted."""
        return self._path(segment, 'buffer')

    def prepare(self, segment: Segment) -> None:
        """Make the folders of a segment's split; forget that an earlier run failed on it."""
        for folder in (self._folder / segment.split, self._out / segment.split):
            with name_file(folder):
                folder.mkdir(exist_ok=True)
        self._path(segment, 'failed').unlink(missing_ok=True)

    def write(self, segment: Segment, record: dict) -> None:
        """Record that a segment is converted.

        Args:
            record: frames (entries of the info file), objects (entries of the database, by number
                of the frame), gaps ({timestamp: what is absent}).
        """
        atomic_write(self._path(segment, 'pkl'), pickle.dumps(record))

    def fail(self, segment: Segment, problem: str) -> None:
        """Record that a segment cannot be converted."""
        atomic_write(self._path(segment, 'failed'), problem.encode())

    def read(self, segment: Segment) -> dict | None:
        """The record of a segment; None where it, or a point file, is missing."""
        path = self._path(segment, 'pkl')
        if not path.is_file():
            return None
        try:
            record = read_plain_pickle(path)
            names = [frame['lidar_points']['lidar_path'] for frame in record['frames']]
        except (DamagedPickle, KeyError, TypeError):  # the machine died before it was on disk
            path.unlink(missing_ok=True)
            return None
        folder = self._out / segment.split
        if not all((folder / name).is_file() for name in names):
            path.unlink(missing_ok=True)
            return None
        return record

    def pending(self, segments: Sequence[Segment]) -> list[Segment]:
        """Segments that are neither converted nor failed."""
        # listed, not asked for one by one: NFS remembers for long that a file was not there
        done = {path for split in SPLITS for path in (self._folder / split).glob('*')}
        return [
            segment
            for segment in segments
            if self._path(segment, 'pkl') not in done and self._path(segment, 'failed') not in done
        ]

    def wait(self, segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
        """Wait for segments whose records other machines may just have written.

        Returns:
            Segments that other processes still convert, and segments that no process converts.
        """
        end = time.monotonic() + PATIENCE
        was_told = False
        working = self._folder / 'working.lock'
        while pending := self.pending(segments):
            with file_lock(working, wait=False, if_unsupported=False) as is_alone:
                if not is_alone:
                    return pending, []
            if time.monotonic() > end:
                return [], pending
            if not was_told:
                tqdm.write(
                    f'waiting up to {PATIENCE:.0f} s for {len(pending)} segments that other '
                    f'processes may have just written, {pending[0]} first'
                )
                was_told = True
            time.sleep(min(PATIENCE / 10, 1.0))
        return [], []

    def write_files(self, segments: Sequence[Segment], has_database: bool) -> Files:
        """Write info files and database of all that is recorded in the splits of these segments.

        Raises:
            OSError: see `atomic_write`.
        """
        files = Files([], {}, 0, {})
        known = set(segments)
        with file_lock(self._folder / 'writing.lock'):
            for number, split in enumerate(SPLITS):
                if not any(segment.split == split for segment in segments):
                    continue
                recorded = self._read_split(split, files.lost)
                earlier = sum(segment not in known for segment in recorded)
                files = files._replace(earlier=files.earlier + earlier)
                for segment, record in recorded.items():
                    if record.get('gaps'):
                        files.gaps[str(segment)] = _describe_gaps(record)

                contents = _make_files(list(recorded.values()), number, split, has_database)
                for name, content in contents.items():
                    path = self._out / name
                    atomic_write(path, pickle.dumps(content), is_shared=True)
                    files.paths.append(path)
        return files

    def _read_split(self, split: str, lost: dict[str, str]) -> dict[Segment, dict]:
        """Records of a split's segments, sorted by name; those with missing files go into lost."""
        recorded = {}
        for name in sorted(path.stem for path in (self._folder / split).glob('*.pkl')):
            segment = Segment(split, name)
            if record := self.read(segment):
                recorded[segment] = record
            else:
                lost[str(segment)] = (
                    'was converted, but some of its point files are missing; convert it again'
                )
        return recorded

    def _path(self, segment: Segment, kind: str) -> Path:
        return self._folder / segment.split / f'{segment.name}.{kind}'


def _make_files(
    records: list[dict], number: int, split: str, has_database: bool
) -> dict[str, dict]:
    """{name: content} of the files of a split, which is the number-th."""
    if not records:
        return {}
    frames = []
    groups: dict[str, list[dict]] = {name: [] for name in CLASSES}
    for i, record in enumerate(records):
        for j, info in enumerate(record['frames']):
            # numbers as mmdet3d gives them: split, segment, frame
            sample_idx = number * 1_000_000 + i * 1000 + j
            frames.append(dict(info, sample_idx=sample_idx))
            for entry in record['objects'].get(j, []):
                box = np.array(entry['box3d_lidar'], np.float32)
                entry = dict(entry, image_idx=sample_idx, difficulty=0, box3d_lidar=box)
                groups[entry['name']].append(entry)

    meta = dict(
        dataset='waymo',
        version='waymo_v2',
        info_version='mmdet3d_v1.4',
        segments=len(records),
        categories={name: label for label, name in enumerate(CLASSES)},
    )
    files: dict[str, dict] = {
        f'waymo_infos_{SPLITS[split]}.pkl': dict(metainfo=meta, data_list=frames)
    }
    if split == 'training' and has_database:
        entries = [entry for name in CLASSES for entry in groups[name]]
        for group, entry in enumerate(entries):
            entry['group_id'] = group
        files['waymo_dbinfos_train.pkl'] = groups
    return files


def _describe_gaps(record: dict) -> str:
    """Text: which frames have no points and are left out, and which LiDARs the others lack."""
    kept = {frame['timestamp'] for frame in record['frames']}
    stamps_by_gap = defaultdict(list)
    for stamp, absent in sorted(record['gaps'].items()):
        is_kept = stamp in kept
        gap = f'without {", ".join(absent)}' if is_kept else 'left out, without a LiDAR point'
        stamps_by_gap[gap].append(str(stamp))

    parts = []
    for gap, stamps in stamps_by_gap.items():
        noun = 'frames' if len(stamps) > 1 else 'frame'
        parts.append(f'{gap}: {noun} {", ".join(stamps)}')
    return '; '.join(parts)
