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
_LARGEST = 2**20  # bytes of one object; real ones have some hundred
_BLOCK = 50_000  # objects held as messages at a time


class ObjectsFile:
    """The objects of a file: `len` of it, and the messages one by one by iterating.

    Opening it walks over the outermost fields only; what is in the file stays on disk until it is
    asked for. Memory is 16 bytes for each object and what `rest` takes, whatever a damaged file
    says of its own lengths.

    submission: the Submission around the objects, without them; None for a bare Objects file.
    rest: bytes of the other fields of Objects, such as no-label zones, which are not read.
    other_fields: {number of
        such a field: how many}.

    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one, with the byte offset of the
        damage. What is wrong
            inside of an object is raised when the object's turn comes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f'there is no Objects file {path}')
        with self.path.open('rb') as file:
            size = os.fstat(file.fileno()).st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b''
        self._starts, self._stops = array('q'), array('q')
        self.submission, results = None, None
        self.rest, self.other_fields = bytearray(), Counter()
        for number, kind, begin, start, stop in self._fields(0, size):
            if number == _RESULTS and kind == _BYTES:
                if results or self._starts:
                    raise self._damage(begin, 'results of a submission after other objects')
                results = start, stop
            else:
                self._add(number, kind, begin, start, stop)
        if results:
            if self._starts:
                raise self._damage(
                    self._starts[0], 'an object outside of the results of a submission'
                )
            self.submission = self._parse(Submission, bytes(self.rest), 0)
            self.rest, self.other_fields = bytearray(), Counter()
            for field in self._fields(*results):
                self._add(*field)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Message]:
        for start, stop in zip(self._starts, self._stops):
            message = self._parse(Object, self._data[start:stop], start)
            if not message.object.HasField('box'):
                raise self._damage(start, 'an object without a box')
            if isinstance(
                message.context_name, bytes
            ):  # what protobuf makes of a string that is none
                raise self._damage(start, 'an object of a segment whose name is no text')
            yield message

    def _add(self, number: int, kind: int, begin: int, start: int, stop: int) -> None:
        """Note a field of Objects."""
        if number != _OBJECTS or kind != _BYTES:
            self.rest += self._data[begin:stop]
            self.other_fields[number] += 1
            return
        if stop - start > _LARGEST:
            raise self._damage(
                begin, f'an object of {stop - start} bytes; real ones have some hundred'
            )
        self._starts.append(start)
        self._stops.append(stop)

    def _parse(self, kind: type, content: bytes, start: int) -> Message:
        try:
            return kind.FromString(content)
        except (DecodeError, UnicodeDecodeError) as error:
            raise self._damage(start, f'no {kind.DESCRIPTOR.name} ({error})') from error

    def _fields(self, offset: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Number, wire type, where it begins, where its value starts and stops, of every field from
        offset to end."""
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
            f'{self.path}: no Waymo Objects file, or damaged: at byte {offset}, {what}'
        )


def read_boxes(
    path: str | Path | ObjectsFile, progress: Callable[[Iterable], Iterable] = iter
) -> WaymoBoxes:
    """Read what the score needs of an Objects file.

    Args:
        path: predictions, ground truths or a submission; or the ObjectsFile.
        progress: wraps the loop, for a progress bar.
    Raises:
        FileNotFoundError, ValueError: see ObjectsFile; also numbers that are not finite.
    """
    file = path if isinstance(path, ObjectsFile) else ObjectsFile(path)
    contexts: dict[str, int] = {}
    messages, blocks = iter(progress(file)), []
    while block := [_row(message, contexts) for message in islice(messages, _BLOCK)]:
        blocks.append([np.array(column, kind) for column, kind in zip(zip(*block), _COLUMNS)])
    columns = [np.concatenate(parts) for parts in zip(*blocks)] or [
        np.zeros(0, kind) for kind in _COLUMNS
    ]
    context, timestamp, *boxes = columns[:9]
    found = make_boxes(list(contexts), context, timestamp, np.stack(boxes, 1), *columns[9:])
    found.check(str(file.path))
    return found


# types of the values of a _row: those of make_boxes in order, a box as seven
_COLUMNS = (
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
    """The Object messages of boxes, in their order; the opposite of read_boxes."""
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
    for context, timestamp, box, kind, score, hidden, difficulty, points, camera in zip(
        *(column.tolist() for column in columns)
    ):
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
        if hidden:
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
    """Write an Objects file; it is there in full or not at all.

    Args:
        path: where.
        objects: Object messages, see make_messages; those of an ObjectsFile keep every field they
        came with.
        rest: other fields of Objects, see ObjectsFile.
        submission: a Submission to wrap around the objects, for Waymo's server.
    Raises:
        OSError: a full disk, a folder that cannot be written; it names the file.
    """
    path = Path(path)
    body, whole = (path.with_name(f'{path.name}.{part}') for part in ('objects.partial', 'partial'))
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
