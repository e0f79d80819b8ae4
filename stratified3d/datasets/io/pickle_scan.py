"""A pass over the opcodes of a pickle, before any of them is executed.

Python's unpickler trusts sizes and numbers in the file: five bytes make it reserve gigabytes, and
tuples nested deep enough, as a key of a dict, end the process. The pass follows the unpickler's
stack without its objects.
"""

from __future__ import annotations

import pickletools
from pickletools import TAKEN_FROM_ARGUMENT1, TAKEN_FROM_ARGUMENT8U, UP_TO_NEWLINE
from typing import NamedTuple

import numpy as np

from stratified3d.jit import compiled

# what pickle writes in protocols 2 to 5 for plain data and arrays, and the bytes that CPython takes
# for it, about, beside those of the file and 8 for each place in a container
_BYTES = dict(
    PROTO=0, FRAME=0, STOP=0, MARK=0, GLOBAL=0, STACK_GLOBAL=0, BUILD=250, REDUCE=64,
    NONE=0, NEWTRUE=0, NEWFALSE=0, BININT=32, BININT1=0, BININT2=32, LONG1=32, BINFLOAT=24,
    SHORT_BINUNICODE=56, BINUNICODE=56, BINUNICODE8=56,
    SHORT_BINBYTES=40, BINBYTES=40, BINBYTES8=40, BYTEARRAY8=64,
    EMPTY_TUPLE=0, TUPLE1=56, TUPLE2=56, TUPLE3=56, TUPLE=56,
    EMPTY_LIST=72, APPEND=24, APPENDS=0, EMPTY_DICT=64, SETITEM=150, SETITEMS=110,
    BINGET=0, LONG_BINGET=0, BINPUT=12, LONG_BINPUT=12, MEMOIZE=12,
)  # fmt: skip
_OPCODES = {op.code: op for op in pickletools.opcodes}
_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_PUTS = ('BINPUT', 'LONG_BINPUT', 'MEMOIZE')
_GETS = ('BINGET', 'LONG_BINGET')
_MARK, _STOP, _MEMOIZE = _CODES['MARK'], _CODES['STOP'], _CODES['MEMOIZE']
_SETITEMS = _CODES['SETITEMS']
_ITEM = 40  # bytes of a dict's item, beside its two places, just after the dict has grown

# of memory to the size of the file: right info files take 4 to 7, by the count here up to 11, and a
# list of small dicts, which others may write, takes 30 as Python's objects, so less is no bound
_RATIO = 20
_SLACK = 2**22  # bytes; small files of little but brackets take more

# how the file tells the length of an argument, beside pickletools' ways
_ABSENT = -9
_FRAME_SIZE = -7
_INT_SIZE = -6
_NEWLINE = 10
_LONGEST_INT = 9  # bytes; longer ones can be made to collide in a dict

_DEEPEST = 100  # of tuples inside each other
_MARKED = 255  # in place of a depth
_END, _DAMAGED, _LARGE, _DEEP = range(4)


class _Tables(NamedTuple):
    """What is known of each opcode.

    Attributes:
        argument: its length, or how the file tells it.
        takes: objects that it takes from the stack, besides those above a mark.
        to_mark: whether it takes all objects above the last mark, and the mark.
        gives: whether it puts something onto the stack.
        is_tuple: whether that is a tuple of what it took.
        is_put, is_get: whether it writes to the memo or reads from it.
        memory: bytes that it takes.
    """

    argument: np.ndarray
    takes: np.ndarray
    to_mark: np.ndarray
    gives: np.ndarray
    is_tuple: np.ndarray
    is_put: np.ndarray
    is_get: np.ndarray
    memory: np.ndarray


def _make_tables() -> _Tables:
    tables = _Tables(*np.zeros((len(_Tables._fields), 256), np.int64))
    tables.argument[:] = _ABSENT
    for name, memory in _BYTES.items():
        code = _CODES[name]
        op = _OPCODES[chr(code)]
        before = [kind.name for kind in op.stack_before]
        has_mark = 'mark' in before

        tables.argument[code] = op.arg.n if op.arg else 0
        tables.to_mark[code] = has_mark
        tables.takes[code] = len(before) - 2 * has_mark
        tables.gives[code] = len(op.stack_after)
        tables.is_tuple[code] = name.startswith('TUPLE')
        tables.is_put[code] = name in _PUTS
        tables.is_get[code] = name in _GETS
        tables.memory[code] = memory

    tables.argument[_CODES['FRAME']] = _FRAME_SIZE
    tables.argument[_CODES['LONG1']] = _INT_SIZE
    return tables


_TABLES = _make_tables()


def find_problem(data: bytes) -> str:
    """What makes a pickle no file of plain data; empty if nothing does.

    The functions and classes that it names remain to be checked.
    """
    room = _RATIO * len(data) + _SLACK
    end, place = _walk(np.frombuffer(data, np.uint8), _TABLES, room)
    if end == _END:
        return ''
    if end == _LARGE:
        return f'would take more than {_RATIO} times its size in memory'
    if end == _DEEP:
        return f'has tuples nested more than {_DEEPEST} deep at byte {place}'

    op = _OPCODES.get(chr(data[place])) if place < len(data) else None
    if op and op.name not in _BYTES:
        return f'has the opcode {op.name}, which plain data does not need, at byte {place}'
    return f'is cut short or damaged at byte {place}'


@compiled
def _number(data, place, width):
    """Little-endian number; -1 if the file ends before or it is above 2^55."""
    if place + width > len(data) or (width == 8 and data[place + 7] > 0):
        return -1
    number = 0
    for i in range(width):
        number |= np.int64(data[place + i]) << (8 * i)
    return number


@compiled
def _argument_length(data, place, kind):
    """Bytes of the argument at a place; -1 if it is not whole or not allowed."""
    if kind == _ABSENT:
        return -1
    if kind == UP_TO_NEWLINE:
        length = _two_lines(data, place)
    elif kind == _FRAME_SIZE:
        frame = _number(data, place, 8)
        rest = len(data) - place - 8
        length = 8 if 0 <= frame <= rest else -1
    elif kind == _INT_SIZE:
        size = _number(data, place, 1)
        length = 1 + size if 0 <= size <= _LONGEST_INT else -1
    elif kind < 0:
        width = _width(kind)
        size = _number(data, place, width)
        length = width + size if size >= 0 else -1
    else:
        length = kind

    end = place + length
    return length if end <= len(data) else -1


@compiled
def _width(kind):
    """Bytes of a number that tells a length."""
    if kind == TAKEN_FROM_ARGUMENT1:
        return 1
    if kind == TAKEN_FROM_ARGUMENT8U:
        return 8
    return 4


@compiled
def _two_lines(data, place):
    """Bytes of the two lines at a place; beyond the end of the file where they have none."""
    end = place
    for _ in range(2):
        while end < len(data) and data[end] != _NEWLINE:
            end += 1
        end += 1
    return end - place


@compiled
def _below(stack, top, takes, to_mark):
    """Place of the lowest object that an opcode takes, and the greatest depth of them all."""
    bottom = top
    depth = 0
    if to_mark:
        while bottom > 0 and stack[bottom - 1] != _MARKED:
            bottom -= 1
            depth = max(depth, stack[bottom])
        bottom -= 1

    for _ in range(takes):
        bottom -= 1
        if bottom >= 0:
            depth = max(depth, stack[bottom])
    return bottom, depth


@compiled
def _walk(data, tables, room):
    """Follow a pickle; a place of its stack is known by the depth of the tuples there.

    Returns:
        How it ended, and at which byte.
    """
    stack = np.empty(len(data) + 1, np.uint8)
    memo = np.empty(len(data) + 1, np.uint8)
    place = top = peak = known = used = 0

    while place < len(data):
        at = place
        op = data[at]
        length = _argument_length(data, at + 1, tables.argument[op])
        if length < 0:
            return _DAMAGED, at
        place = at + 1 + length
        if op == _STOP:
            return (_END if top == 1 else _DAMAGED), at

        bottom, depth = _below(stack, top, tables.takes[op], tables.to_mark[op])
        if bottom < 0 or depth == _MARKED:
            return _DAMAGED, at
        if depth == _DEEPEST:
            return _DEEP, at

        given = depth + 1 if tables.is_tuple[op] else 0
        if op == _MARK:
            given = _MARKED
        elif tables.is_put[op]:
            index = known if op == _MEMOIZE else _number(data, at + 1, length)
            if index > known or top == 0:
                return _DAMAGED, at
            memo[index] = stack[top - 1]
            known = max(known, index + 1)
            used += tables.memory[op]
            continue
        elif tables.is_get[op]:
            index = _number(data, at + 1, length)
            if index >= known:
                return _DAMAGED, at
            given = memo[index]

        used += tables.memory[op] + 8 * (top - bottom)
        if op == _SETITEMS:
            used += _ITEM * (top - bottom) // 2
        top = bottom
        if tables.gives[op]:
            stack[top] = given
            top += 1
        peak = max(peak, top)
        if used + 8 * peak > room:
            return _LARGE, at
    return _DAMAGED, len(data)
