"""Objects files: round trips, damage with its place, fuzzing."""

import tracemalloc

import numpy as np
import pytest
from google.protobuf import unknown_fields
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratified3d.evaluation.waymo.files import (
    ObjectsFile,
    make_messages,
    read_objects,
    write_objects,
)
from stratified3d.evaluation.waymo.messages import Object, Submission
from stratified3d.evaluation.waymo.synthetic_boxes import synthetic_frames

NO_FIXTURE_RESET = [HealthCheck.function_scoped_fixture]


def assert_same(a, b):
    for name, value in vars(a).items():
        if name not in ('contexts', 'context'):
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
    assert [a.contexts[i] for i in a.context] == [b.contexts[i] for i in b.context]


def varint(value):
    head = []
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])


def field(number, content, kind=2):
    return varint(number << 3 | kind) + (varint(len(content)) if kind == 2 else b'') + content


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'objects.bin'


@pytest.fixture(scope='module')
def valid(tmp_path_factory):
    """Bytes of a file of three ground truths, as the project writes it."""
    path = tmp_path_factory.mktemp('valid') / 'valid.bin'
    write_objects(path, make_messages(synthetic_frames(1, 3, 3, seed=1)[1]))
    return path.read_bytes()


@pytest.mark.parametrize('which', [0, 1])
def test_boxes_survive_writing_and_reading(path, which):
    boxes = synthetic_frames(5, 20, 10, seed=0)[which]
    write_objects(path, make_messages(boxes))
    assert_same(read_objects(path), boxes)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert_same(read_objects(path), read_objects(path, progress=lambda file: iter([*file])))


def test_bytes_of_an_object_are_those_of_the_format(path):
    """One object, written out by hand from the numbers and types of the format's fields."""
    numbers = np.array(
        [1.5, -2, 0.25, 2, 4, 1.5, -3], '<f8'
    )  # x, y, z, width, length, height, heading
    box = b''.join(field(i, number.tobytes(), kind=1) for i, number in enumerate(numbers, 1))
    label = (
        field(1, box)
        + field(3, varint(4), 0)
        + field(4, b'id')
        + field(5, varint(2), 0)
        + field(7, varint(300), 0)
    )
    content = (
        field(1, label)
        + field(2, np.float32(0.75).tobytes(), 5)
        + field(3, b'\1', 0)
        + field(4, b'segment')
        + field(5, varint(1507315488219118), 0)
        + field(6, varint(3), 0)
    )
    path.write_bytes(field(1, content))
    boxes = read_objects(path)
    assert boxes.boxes.tolist() == [[1.5, -2, 0.25, 4, 2, 1.5, -3]]
    assert (
        boxes.contexts,
        boxes.timestamp,
        boxes.types,
        boxes.scores,
        boxes.in_no_label_zone,
        boxes.difficulty,
        boxes.num_points,
        boxes.camera,
    ) == (['segment'], [1507315488219118], [4], [0.75], [True], [2], [300], [3])
    write_objects(path.with_name('again'), ObjectsFile(path))
    assert path.with_name('again').read_bytes() == path.read_bytes()
    path.write_bytes(field(1, field(1, field(1, b''))))  # what is left out has its default
    boxes = read_objects(path)
    assert (boxes.contexts, boxes.scores, boxes.types, boxes.difficulty) == ([''], [1], [0], [0])


def test_unknown_fields_survive_reading_and_writing(path):
    """In every message, an enumeration's unknown value, and beside the objects."""
    extra = field(900, b'more') + field(19, varint(7), 0)
    label = (
        field(1, field(1, bytes(8), kind=1) + extra)
        + field(2, field(1, bytes(8), 1))
        + extra
        + field(3, b'\7', 0)
    )
    content = (
        field(1, field(1, label) + extra)
        + field(2, b'a zone')
        + field(55, b'x')
        + field(2, b'another')
    )
    path.write_bytes(content)
    file = ObjectsFile(path)
    (message,) = file
    assert {f.field_number for f in unknown_fields.UnknownFieldSet(message.object)} == {
        900,
        19,
        2,
        3,
    }
    assert file.other_fields == {2: 2, 55: 1} and read_objects(file).types == [0]
    write_objects(path, file, rest=file.rest)
    again = ObjectsFile(path)
    assert [m.SerializeToString() for m in again] == [
        message.SerializeToString()
    ] and again.rest == file.rest
    for part in (extra, b'a zone', b'another'):
        assert path.read_bytes().count(part) == content.count(part)


def test_submission_survives_reading_and_writing(path):
    boxes = synthetic_frames(3, 10, 1, seed=2)[0]
    head = Submission(
        task=2,
        account_name='a@b.c',
        unique_method_name='name',
        authors=['A', 'B'],
        sensor_type=1,
        object_types=[1, 2, 4],
    )
    write_objects(path, make_messages(boxes), submission=head)
    file = ObjectsFile(path)
    assert file.submission == head and not file.rest and len(file) == 30
    assert_same(read_objects(file), boxes)
    body = b''.join(field(1, m.SerializeToString()) for m in make_messages(boxes))
    assert path.read_bytes() == head.SerializeToString() + field(11, body)
    path.write_bytes(field(11, body) + head.SerializeToString() + field(30, b'later'))
    file = ObjectsFile(path)
    assert len(file) == 30 and file.submission.unique_method_name == 'name'
    assert b'later' in file.submission.SerializeToString()


def test_truncated_file_is_refused_with_the_offset_of_the_damage(path, valid):
    borders = [0]
    while borders[-1] < len(valid):
        borders.append(borders[-1] + 2 + valid[borders[-1] + 1])
    for length in range(len(valid)):
        path.write_bytes(valid[:length])
        if length in borders:
            assert len(read_objects(path)) == borders.index(length)
            continue
        begin = max(border for border in borders if border < length)
        with pytest.raises(
            ValueError, match=rf'objects.bin: .*at byte ({begin}|{begin + 1}), .*cut off'
        ):
            read_objects(path)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'\0\0', 'at byte 0, .*number 0'),
        (b'\x0b\x0c', 'at byte 0, field 1 .*type 3'),
        (field(2, b'zone') + b'\x0e', 'at byte 6, field 1 .*type 6'),
        (b'\x0a' + b'\xff' * 11, 'at byte 1, .*not end'),
        (
            b'\x0a' + varint(2**63),
            'at byte 0, field 1 .* 9223372036854775819, .* 11',
        ),
        (field(1, field(1, b'\x0a\x09')), 'at byte 2, not a valid Object'),
        (
            field(1, field(1, field(1, b'')) + field(4, b'\xff\xfe')),
            'at byte 2, .*not text',
        ),
        (field(1, field(3, b'\1', 0)), 'at byte 2, .*without a box'),
        (field(1, field(1, field(3, b'\1', 0))), 'at byte 2, .*without a box'),
        (field(1, bytes(2**20 + 1)), 'at byte 0, .*1048577 bytes'),
        (field(1, b'') + field(11, b''), 'at byte 2, results .* after'),
        (field(11, b'') + field(11, b''), 'at byte 2, results .* after'),
        (field(11, b'') + field(1, b''), 'at byte 4, .*outside'),
        (field(1, field(1, b'\x0b' * 5000)), 'at byte 3, not a valid Object'),
    ],
)
def test_damaged_file_is_refused_with_the_offset_of_the_damage(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_objects(path)


def test_missing_empty_and_non_finite_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match='no Objects file .*objects.bin'):
        read_objects(path)
    with pytest.raises(FileNotFoundError, match='no Objects file'):
        read_objects(tmp_path)
    path.write_bytes(b'')
    assert len(read_objects(path)) == 0
    number = np.array([np.nan], '<f8').tobytes()
    path.write_bytes(
        field(1, field(1, field(1, b''))) + field(1, field(1, field(1, field(2, number, 1))))
    )
    with pytest.raises(ValueError, match="objects.bin: object 1, .* '' at 0, .*coordinate"):
        read_objects(path)
    with pytest.raises(OSError, match='nowhere'):
        write_objects(tmp_path / 'nowhere/file.bin', [])


def test_interrupted_write_leaves_the_old_file(path, valid):
    path.write_bytes(valid)

    def fail():
        yield Object()
        raise RuntimeError('no more')

    with pytest.raises(RuntimeError, match='no more'):
        write_objects(path, fail())
    assert path.read_bytes() == valid and [p.name for p in path.parent.iterdir()] == [path.name]


def read_or_refuse(path, content):
    """Boxes that were read, or None where the file was refused with the place of the damage."""
    path.write_bytes(content)
    try:
        return read_objects(path)
    except ValueError as error:
        assert str(path) in str(error) and (
            'at byte' in str(error) or 'not a finite number' in str(error)
        )
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=NO_FIXTURE_RESET)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(path, content):
    read_or_refuse(path, content)


@settings(max_examples=150, deadline=None, suppress_health_check=NO_FIXTURE_RESET)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(0, 3)), min_size=1, max_size=6
    )
)
def test_changed_files_are_read_or_refused(path, valid, changes):
    """Bytes overwritten, removed, inserted or doubled."""
    content = bytearray(valid)
    for where, byte, how in changes:
        at = int(where * (len(content) - 1))
        content[at : at + (how != 2)] = [
            bytes([byte]),
            b'',
            bytes([byte]),
            bytes(content[at : at + 1]) * 2,
        ][how]
    boxes = read_or_refuse(path, bytes(content))
    if boxes is not None:
        again = path.with_name('again.bin')
        write_objects(again, make_messages(boxes))
        assert_same(read_objects(again), boxes)


def test_false_lengths_cost_no_memory(path):
    path.write_bytes(field(2, b'x' * 1000) + b'\x0a' + varint(2**40))
    read_or_refuse(path, b'')
    tracemalloc.start()
    for head in (b'\x0a', b'\x12', b'\x5a', b'\x0a\x86\x80\x80\x80\x10\x0a'):
        assert read_or_refuse(path, head + varint(2**33) + b'\x0a\x01' * 1000) is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_real_file_survives_reading_and_writing(path, real_data):
    """One ground truth that the official program wrote; its bytes come back."""
    source = real_data / 'waymo/gt.bin'
    boxes = read_objects(source)
    assert (
        len(boxes) == 1
        and boxes.types == [1]
        and boxes.num_points == [100]
        and boxes.scores == [np.float32(0.8)]
    )
    np.testing.assert_allclose(
        boxes.boxes[0], [69.6765, 33.3409, 0.7714, 4.36, 2.01, 1.46, -1.4808], atol=1e-4
    )
    assert boxes.contexts == ['1071392229495085036_1844_790_1864_790'] and boxes.timestamp == [
        1507315488219118
    ]
    write_objects(path, ObjectsFile(source))
    assert path.read_bytes() == source.read_bytes()
    write_objects(path, make_messages(boxes))
    assert path.read_bytes() == source.read_bytes()
