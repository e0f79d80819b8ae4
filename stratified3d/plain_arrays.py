"""Numpy's arrays and numbers in pickles, read without numpy's own reconstruction.

`numpy.ndarray` and `numpy.dtype` believe what a pickle tells them, and a wrong word about sizes or
types breaks the interpreter. The classes here take the place of both while a pickle is read; they
know numbers and nothing else. `unwrap` puts arrays in their place.
"""

from __future__ import annotations

import pickle
import re
from typing import Any, Literal

import numpy as np

# numpy 2 moved its modules; files of either version are read by either version
MULTIARRAY = ('numpy.core.multiarray', 'numpy._core.multiarray')
NUMERIC = ('numpy.core.numeric', 'numpy._core.numeric')


class Kind:
    """Replaces numpy.dtype."""

    __slots__ = ('dtype',)

    def __init__(self, code: str, *_):
        if not isinstance(code, str) or not re.fullmatch('[?bBhHiIlLqQefd]|b1|[iuf][1248]', code):
            raise pickle.UnpicklingError(f'numpy arrays of {code!r}, not of numbers')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """Replaces numpy.ndarray and its reconstruction; `array` shares the memory of the pickle."""

    __slots__ = ('array',)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *_):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, raw = state
        order: Literal['F', 'C'] = 'F' if is_fortran else 'C'
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order=order)
        if self.array.shape != shape:
            raise pickle.UnpicklingError(f'an array of shape {shape}')


def from_buffer(raw: bytes, kind: Kind, shape: tuple, order: str) -> Array:
    """Replaces numpy's _frombuffer, by which protocol 5 makes arrays."""
    array = Array()
    array.__setstate__((1, shape, kind, order == 'F', raw))
    return array


def scalar(kind: Kind, raw: bytes) -> np.generic:
    """Replaces numpy's scalar, which makes a number of its bytes."""
    return np.frombuffer(raw, kind.dtype)[0]


def unwrap(content: Any, room: int, owners: tuple[type, ...] = ()) -> Any:
    """Return the same content with numpy's arrays in place of `Array`.

    Args:
        content: dicts, lists and tuples of anything; dicts and lists are changed in place.
        room: bytes that all arrays may take together. A pickle can name the same bytes for any
            number of arrays.
        owners: classes whose attributes may contain arrays.
    Raises:
        pickle.UnpicklingError: the arrays take more.
    """
    return _Unwrapping(room, owners).visit(content)


class _Unwrapping:
    """Visits each container once, however often it occurs."""

    def __init__(self, room: int, owners: tuple[type, ...]):
        self._room = room
        self._kinds = (dict, list, tuple, Array, *owners)
        self._done: dict[int, tuple[Any, Any]] = {}  # id: the item, kept alive, and its successor

    def visit(self, item: Any) -> Any:
        if not isinstance(item, self._kinds):
            return item
        if id(item) in self._done:
            return self._done[id(item)][1]

        if isinstance(item, Array):
            return self._finish(item, self._copy(item.array))
        if isinstance(item, tuple):
            parts = [self.visit(part) for part in item]
            is_same = all(new is old for new, old in zip(parts, item))
            return self._finish(item, item if is_same else tuple(parts))

        self._finish(item, item)
        if isinstance(item, list):
            self._replace(item, enumerate(item))
        elif isinstance(item, dict):
            self._replace(item, item.items())
        else:
            self._replace(vars(item), vars(item).items())
        return item

    def _finish(self, item: Any, successor: Any) -> Any:
        self._done[id(item)] = item, successor
        return successor

    def _replace(self, parts: Any, pairs: Any) -> None:
        """Replace the values of a dict or list where they are or contain arrays."""
        for key, value in pairs:
            if isinstance(value, self._kinds):
                parts[key] = self.visit(value)

    def _copy(self, array: np.ndarray) -> np.ndarray:
        self._room -= array.nbytes
        if self._room < 0:
            raise pickle.UnpicklingError('its arrays take more memory than the file')
        return array.copy('A') if array.dtype.isnative else array.astype(array.dtype.newbyteorder())
