"""Protobuf messages of the Waymo Open Dataset's Objects and Submission files, described in code.

Only what the score needs is described; protobuf keeps all other fields of a message and writes them
again. The pool is our own, so that the official package may be imported beside this one.
"""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_PACKAGE = 'stratified3d.waymo'
_FIELD = descriptor_pb2.FieldDescriptorProto
# message: {number: (name, type, default)}; a capital first letter marks a message or an
# enumeration, a star a repeated field
_MESSAGES: dict[str, dict[int, tuple[str, ...]]] = {
    'Box': {
        1: ('center_x', 'double'),
        2: ('center_y', 'double'),
        3: ('center_z', 'double'),
        4: ('width', 'double'),
        5: ('length', 'double'),
        6: ('height', 'double'),
        7: ('heading', 'double'),
    },
    'Label': {
        1: ('box', 'Box'),
        3: ('type', 'Type'),
        4: ('id', 'string'),
        5: ('detection_difficulty_level', 'DifficultyLevel'),
        7: ('num_lidar_points_in_box', 'int32'),
    },
    'Object': {
        1: ('object', 'Label'),
        2: ('score', 'float', '1'),
        3: ('overlap_with_nlz', 'bool'),
        4: ('context_name', 'string'),
        5: ('frame_timestamp_micros', 'int64'),
        6: ('camera_name', 'int32'),
    },
    'Submission': {
        1: ('task', 'int32'),
        2: ('unique_method_name', 'string'),
        3: ('authors', 'string*'),
        4: ('affiliation', 'string'),
        5: ('description', 'string'),
        6: ('method_link', 'string'),
        9: ('number_past_frames_exclude_current', 'int32'),
        10: ('number_future_frames_exclude_current', 'int32'),
        12: ('sensor_type', 'int32'),
        13: ('account_name', 'string'),
        14: ('object_types', 'Type*'),
        15: ('latency_second', 'float'),
        16: ('docker_image_source', 'string'),
    },
}
_ENUMS = {
    'Type': ('TYPE_UNKNOWN', 'TYPE_VEHICLE', 'TYPE_PEDESTRIAN', 'TYPE_SIGN', 'TYPE_CYCLIST'),
    'DifficultyLevel': ('UNKNOWN', 'LEVEL_1', 'LEVEL_2'),
}


def _build() -> dict[str, type[Message]]:
    """Classes of all messages."""
    file = descriptor_pb2.FileDescriptorProto(
        name='stratified3d/waymo.proto', package=_PACKAGE, syntax='proto2'
    )
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for i, value in enumerate(values):
            enum.value.add(name=value, number=i)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind, *default) in fields.items():
            _add_field(message, number, field_name, kind, default)

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = {}
    for name in _MESSAGES:
        descriptor = pool.FindMessageTypeByName(f'{_PACKAGE}.{name}')
        classes[name] = message_factory.GetMessageClass(descriptor)
    return classes


def _add_field(
    message: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str, default: list[str]
) -> None:
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if kind.endswith('*'):
        kind = kind[:-1]
        field.label = _FIELD.LABEL_REPEATED
    if kind[0].isupper():
        field.type = _FIELD.TYPE_ENUM if kind in _ENUMS else _FIELD.TYPE_MESSAGE
        field.type_name = f'.{_PACKAGE}.{kind}'
    else:
        field.type = _FIELD.Type.Value(f'TYPE_{kind.upper()}')
    if default:
        field.default_value = default[0]


_CLASSES = _build()
Object = _CLASSES['Object']
Submission = _CLASSES['Submission']
