"""Reading and writing Waymo's Objects files: predictions, ground truths, submissions, without
TensorFlow."""

from __future__ import annotations

import mmap
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError, Message

from stratified3d.evaluation.waymo.boxes import WaymoBoxes, make_boxes
from stratified3d.evaluation.waymo.messages import Object, Submission
from stratified3d.resumable import name_file

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_OBJECTS, _RESULTS = 1, 11  # numbers of Objects.objects and of Submission.inference_results
# number, wire type, where it begins, where its value starts and stops (bytes); a plain tuple, since
# files have millions of them
_Field = tuple[int, int, int, int, int]
_MAX_OBJECT = 2**20  # bytes; real ones have some hundred
_BLOCK = 50_000  # objects held as messages at a time


class ObjectsFile:
    """The objects of a file: `len` gives their number, iterating the messages one by one.

    Opening it walks over the outermost fields only; the content stays on disk until it is asked
    for. Memory is 16 bytes per object and what `rest` takes, whatever lengths a damaged file
    states.

    Attributes:
        submission: the Submission around the objects, without them; None for a bare Objects file.
        rest: bytes of the other fields of Objects, such as no-label zones, which are not read.
        other_fields: {number of such a field: how many}.
    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one, with the byte offset of the
            damage. Damage inside of an object is raised when the object's turn comes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f'there is no Objects file {path}')
        with self.path.open('rb') as file:
            size = os.fstat(file.fileno()).st_size
            self._data: mmap.mmap | bytes = b''
            if size:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts = array('q')
        self._stops = array('q')
        self.submission: Message | None = None
        self.rest = bytearray()
        self.other_fields: Counter[int] = Counter()

        results: tuple[int, int] | None = None
        for number, kind, begin, start, stop in self._fields(0, size):
            if number == _RESULTS and kind == _BYTES:
                if results or self._starts:
                    raise self._damage(begin, 'results of a submission after other objects')
                results = start, stop
            else:
                self._add(number, kind, begin, start, stop)
        if results:
            self._unwrap(*results)

    def _unwrap(self, start: int, stop: int) -> None:
        """Take the fields read so far as those of a Submission with results from start to stop."""
        if self._starts:
            raise self._damage(self._starts[0], 'an object outside of the results of a submission')
        self.submission = self._parse(Submission, bytes(self.rest), 0)
        self.rest = bytearray()
        self.other_fields = Counter()
        for field in self._fields(start, stop):
            self._add(*field)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Message]:
        for start, stop in zip(self._starts, self._stops):
            message = self._parse(Object, self._data[start:stop], start)
            if not message.object.HasField('box'):
                raise self._damage(start, 'an object without a box')
            if isinstance(message.context_name, bytes):  # protobuf could not decode it
                raise self._damage(start, 'an object of a segment whose name is not text')
            yield message

    def _add(self, number: int, kind: int, begin: int, start: int, stop: int) -> None:
        """Note a field of Objects."""
        if number != _OBJECTS or kind != _BYTES:
            self.rest += self._data[begin:stop]
            self.other_fields[number] += 1
            return
        if stop - start > _MAX_OBJECT:
            raise self._damage(
                begin, f'an object of {stop - start} bytes; real ones have some hundred'
            )
        self._starts.append(start)
        self._stops.append(stop)

    def _parse(self, kind: type[Message], content: bytes, start: int) -> Message:
        try:
            return kind.FromString(content)
        except (DecodeError, UnicodeDecodeError) as error:
            name = kind.DESCRIPTOR.name
            raise self._damage(start, f'not a valid {name} ({error})') from error

    def _fields(self, offset: int, end: int) -> Iterator[_Field]:
        """Every field from offset to end."""
        while offset < end:
            begin = offset
            tag, offset = self._varint(begin, end)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise self._damage(begin, f'a field with the number {number}')

            start, stop = offset, offset
            if kind == _VARINT:
                _, stop = self._varint(offset, end)
            elif kind == _BYTES:
                length, start = self._varint(offset, end)
                stop = start + length
            elif kind in (_FIXED64, _FIXED32):
                stop = offset + (8 if kind == _FIXED64 else 4)
            else:
                raise self._damage(
                    begin, f'field {number} with the wire type {kind}, which these files never have'
                )
            if stop > end:
                raise self._damage(
                    begin,
                    f'field {number} would end at byte {stop}, after the end at {end}; is the '
                    'file cut off?',
                )
            yield number, kind, begin, start, stop
            offset = stop

    def _varint(self, offset: int, end: int) -> tuple[int, int]:
        value = 0
        for i in range(min(10, end - offset)):
            byte = self._data[offset + i]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value, offset + i + 1
        raise self._damage(offset, 'a number that does not end; is the file cut off?')

    def _damage(self, offset: int, what: str) -> ValueError:
        return ValueError(
            f'{self.path}: damaged, or not a Waymo Objects file: at byte {offset}, {what}'
        )


def read_objects(
    path: str | Path | ObjectsFile, progress: Callable[[Iterable], Iterable] = iter
) -> WaymoBoxes:
    """Boxes of an Objects file, with all that the score needs.

    Args:
        path: predictions, ground truths or a submission; or the ObjectsFile.
        progress: wraps the loop, for a progress bar.
    Raises:
        FileNotFoundError, ValueError: see ObjectsFile; also numbers that are not finite.
    """
    file = path if isinstance(path, ObjectsFile) else ObjectsFile(path)
    contexts: dict[str, int] = {}
    messages = iter(progress(file))
    blocks = []
    while block := [_row(message, contexts) for message in islice(messages, _BLOCK)]:
        blocks.append(_make_columns(block))
    if not blocks:
        blocks = [[np.zeros(0, kind) for kind in _COLUMNS]]

    columns = [np.concatenate(parts) for parts in zip(*blocks)]
    context, timestamp = columns[:2]
    numbers = np.stack(columns[2:9], 1)
    boxes = make_boxes(list(contexts), context, timestamp, numbers, *columns[9:])
    boxes.check(str(file.path))
    return boxes


def _make_columns(rows: list[tuple]) -> list[np.ndarray]:
    return [np.array(column, kind) for column, kind in zip(zip(*rows), _COLUMNS)]


# types of the values of a _row: the columns of make_boxes in their order, a box as seven
_COLUMNS: tuple[type, ...] = (
    np.int32,
    np.int64,
    *[np.float64] * 7,
    np.uint8,
    np.float32,
    np.bool_,
    np.uint8,
    np.int32,
    np.int32,
)


def _row(message: Message, contexts: dict[str, int]) -> tuple:
    """Values of an object; contexts: numbers of the segments so far."""
    label = message.object
    box = label.box
    return (
        contexts.setdefault(message.context_name, len(contexts)),
        message.frame_timestamp_micros,
        box.center_x,
        box.center_y,
        box.center_z,
        box.length,
        box.width,
        box.height,
        box.heading,
        label.type,
        message.score,
        message.overlap_with_nlz,
        label.detection_difficulty_level,
        label.num_lidar_points_in_box,
        message.camera_name,
    )


def make_messages(boxes: WaymoBoxes) -> Iterator[Message]:
    """Object messages of boxes, in their order; the inverse of read_objects."""
    columns = (
        boxes.context,
        boxes.timestamp,
        boxes.boxes,
        boxes.types,
        boxes.scores,
        boxes.in_no_label_zone,
        boxes.difficulty,
        boxes.num_points,
        boxes.camera,
    )
    rows = zip(*(column.tolist() for column in columns))
    for context, timestamp, box, kind, score, in_zone, difficulty, points, camera in rows:
        message = Object(
            context_name=boxes.contexts[context], frame_timestamp_micros=timestamp, score=score
        )
        label = message.object
        x, y, z, length, width, height, heading = box
        label.box.MergeFrom(
            type(label.box)(
                center_x=x,
                center_y=y,
                center_z=z,
                length=length,
                width=width,
                height=height,
                heading=heading,
            )
        )
        label.type = kind
        if points:
            label.num_lidar_points_in_box = points
        if difficulty:
            label.detection_difficulty_level = difficulty
        if in_zone:
            message.overlap_with_nlz = True
        if camera:
            message.camera_name = camera
        yield message


def write_objects(
    path: str | Path,
    objects: Iterable[Message],
    rest: bytes | bytearray = b'',
    submission: Message | None = None,
) -> None:
    """Write an Objects file, complete or not at all.

    Args:
        path: the file.
        objects: Object messages, see make_messages; those of an ObjectsFile keep every field they
            came with.
        rest: other fields of Objects, see ObjectsFile.
        submission: a Submission to wrap around the objects, for Waymo's server.
    Raises:
        OSError: a full disk, a folder that cannot be written; it names the file.
    """
    path = Path(path)
    body = path.with_name(f'{path.name}.objects.partial')
    whole = path.with_name(f'{path.name}.partial')
    try:
        with name_file(path):
            with body.open('wb') as file:
                for message in objects:
                    content = message.SerializeToString()
                    file.write(_head(_OBJECTS, len(content)))
                    file.write(content)
                file.write(rest)
            if submission is not None:
                with whole.open('wb') as file, body.open('rb') as source:
                    file.write(submission.SerializeToString())
                    file.write(_head(_RESULTS, body.stat().st_size))
                    shutil.copyfileobj(source, file, 2**20)
                os.replace(whole, body)
            os.replace(body, path)
    finally:
        for part in (body, whole):
            part.unlink(missing_ok=True)


def _head(number: int, length: int) -> bytes:
    """Tag and length of a field of bytes."""
    head = [number << 3 | _BYTES]
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length])
