"""Checkpoints: loaded without giving control to the file, found again after a crash, released as
safetensors.

torch >= 2.6 refuses mmengine's files by default, because besides tensors they hold its
HistoryBuffer and numpy arrays. The remedies in circulation switch the check off, and a checkpoint
can then run any code. Here torch's restricted unpickler stays in force and is told of the few names
that such a file needs.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# what mmengine's own classes are pickled with: methods, fetched by name
_METHODS = {
    HistoryBuffer: ('mean', 'min', 'max', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner: Any, name: str) -> Any:
    """Stands in for builtins.getattr."""
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'a checkpoint may not fetch attribute {name!r} of {owner!r}')


class _Kind:
    """Stands in for numpy.dtype, whose own __setstate__ lets a file break the interpreter: plain
    numbers only."""

    def __init__(self, code: str, *_):
        if not isinstance(code, str) or not re.fullmatch('[?bBhHiIlLqQefd]|b1|[iuf][1248]', code):
            raise pickle.UnpicklingError(f'a checkpoint may not hold numpy arrays of {code!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray and its reconstruction, until `_unwrap`."""

    def __init__(self, *_):
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, raw = state
        array = np.frombuffer(raw, kind.dtype).reshape(shape, order='F' if is_fortran else 'C')
        self.array = array.astype(kind.dtype.newbyteorder('='))


def _scalar(kind: _Kind, raw: bytes) -> np.generic:
    return np.frombuffer(raw, kind.dtype)[0]


def _empty_bytes(*arguments: Any) -> bytes:
    """Stands in for builtins.bytes, as which the memory of an empty array is pickled."""
    if arguments:
        raise pickle.UnpicklingError('a checkpoint may not call bytes with arguments')
    return b''


def _unwrap(content: Any) -> Any:
    """The same content with numpy's arrays in the places of their stand-ins."""
    if isinstance(content, _Array):
        return content.array
    if isinstance(content, HistoryBuffer):
        _unwrap(vars(content))
    elif isinstance(content, dict):
        for key, value in content.items():
            content[key] = _unwrap(value)
    elif type(content) in (list, tuple):
        return type(content)(map(_unwrap, content))
    return content


def _known_globals() -> list:
    # numpy 2 moved two of them; files of either version are read by either version
    moved = [
        (f, f'{module}.multiarray.{name}')
        for module in ('numpy.core', 'numpy._core')
        for f, name in ((_Array, '_reconstruct'), (_scalar, 'scalar'))
    ]
    builtins = [(_method, 'builtins.getattr'), (_empty_bytes, 'builtins.bytes')]
    return [*_METHODS, (_Array, 'numpy.ndarray'), (_Kind, 'numpy.dtype'), *moved, *builtins]


def load_checkpoint_file(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint written by mmengine's CheckpointHook, or a .safetensors file of weights,
    from the local disk.

    Args:
        filename: path; `~` is expanded.
        map_location: as in torch.load.
    Returns:
        What the file holds: state_dict, meta, message_hub, and optimizer and schedulers where
        saved. Of a .safetensors
        file: state_dict and meta, whose dataset_meta names the classes where the file does.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged (named with the one before it), or asks for something that
        no checkpoint needs.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'there is no checkpoint {filename}')
    if filename.endswith('.safetensors'):
        return _load_safetensors(filename, map_location)
    with open(filename, 'rb') as file:
        is_archive = file.read(2) == b'PK'
    if is_archive and not _is_whole(filename):  # torch does not look at checksums
        raise ValueError(
            f'{filename}: damaged or cut short (its parts or their checksums are not complete)'
            f'{_earlier(filename)}'
        )
    try:
        with torch.serialization.safe_globals(_known_globals()):
            content = _unwrap(torch.load(filename, map_location=map_location, weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{filename}: not loaded, because it holds more than weights and logs, or is damaged'
            f'{_reason(error)}{_earlier(filename)}'
        ) from error
    except (
        Exception
    ) as error:  # a damaged pickle fails in any way; what it could name has been refused above
        raise ValueError(
            f'{filename}: damaged or cut short{_reason(error)}{_earlier(filename)}'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f'{filename}: holds a {type(content).__name__}, not a checkpoint')
    return content


def _reason(error: Exception) -> str:
    """What an error of torch's stumbled over, in brackets, without the advice to switch the check
    off."""
    text = str(error)
    known = r'(GLOBAL|global) [\w.]+|a checkpoint may not [^\n]*|Unsupported \w+ \w+|TorchScript archive'
    found = re.search(known, text)
    text = (
        found[0]
        if found
        else type(error).__name__
        if 'weights_only' in text
        else text.split('\n')[0]
    )
    return f' ({text})'


def _load_safetensors(filename: str, map_location: Any) -> dict:
    try:
        with safe_open(filename, 'pt') as file:
            state, notes = (
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                file.metadata() or {},
            )
    except SafetensorError as error:
        raise ValueError(f'{filename}: damaged or cut short ({error})') from error
    if map_location is not None and not callable(map_location):
        state = {name: value.to(map_location) for name, value in state.items()}
    meta = (
        dict(dataset_meta=dict(classes=json.loads(notes['classes']))) if 'classes' in notes else {}
    )
    return dict(state_dict=state, meta=meta)


def save_weights(
    filename: str | Path,
    state: Mapping[str, Tensor],
    classes: Sequence[str] | None = None,
    half: bool = False,
) -> None:
    """Write weights alone as .safetensors, a format that holds nothing else; whole or not at all.

    Args:
        filename: ends in .safetensors.
        state: a model's state_dict.
        classes: what the labels count; loading checks it.
        half: fp32 numbers as fp16, in half the room; a model that loads them holds them as fp32
        again.
    Raises:
        ValueError: another suffix, or a number that fp16 cannot hold.
    """
    if not str(filename).endswith('.safetensors'):
        raise ValueError(f'{filename}: weights are released as .safetensors')
    notes = dict(
        format='pt', **({} if classes is None else dict(classes=json.dumps(list(classes))))
    )
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if half:
        full, state = (
            state,
            {n: v.half() if v.dtype == torch.float32 else v for n, v in state.items()},
        )
        for name, value in state.items():
            if not value.isfinite().all():
                raise ValueError(
                    f'{filename}: fp16 cannot hold {name}, up to {float(full[name].abs().max()):g}'
                )
    partial = Path(f'{filename}.partial')
    save_file(state, partial, notes)
    os.replace(partial, filename)


def check_fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    filename: str,
    classes: Sequence[str] | None = None,
    own_classes: Sequence[str] | None = None,
    optional: str | None = None,
) -> str:
    """Compare weights with a model.

    Args:
        model: that is to have them.
        state: name -> tensor.
        filename: for the message.
        classes, own_classes: what the labels of weights and model count, where known.
        optional: a prefix of names that may differ.
    Returns:
        What differs under `optional`; empty if nothing does.
    Raises:
        ValueError: lists what differs elsewhere.
    """
    if classes is not None and own_classes is not None and list(classes) != list(own_classes):
        raise ValueError(
            f'{filename}: trained on classes {list(classes)}, the config has {list(own_classes)}'
        )
    own = model.state_dict()
    odd = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    differing = dict(
        missing={n: n for n in own.keys() - state.keys()},
        unknown={n: n for n in [*(state.keys() - own.keys()), *odd]},
    )
    differing['of another shape'] = {
        n: f'{n} {tuple(state[n].shape)}, not {tuple(own[n].shape)}'
        for n in own.keys() & (state.keys() - odd.keys())
        if own[n].shape != state[n].shape
    }
    parts = [
        f'{len(names)} {title} ({"; ".join(sorted(names.values())[:5])}{"; ..." if len(names) > 5 else ""})'
        for title, names in differing.items()
        if names
    ]
    message = f'{filename}: weights of another model: {", ".join(parts)}' if parts else ''
    if message and not (
        optional and all(n.startswith(optional) for names in differing.values() for n in names)
    ):
        raise ValueError(message)
    return message


def latest_checkpoint(folder: str | Path) -> str | None:
    """The checkpoint of a training's work folder to go on from.

    The one that `last_checkpoint` names, if it is there; a run killed at the wrong moment leaves an
    empty or outdated note, and then it is the epoch_N.pth or iter_N.pth of the largest N. None if
    there is none.
    """
    folder = Path(folder)
    note = folder / 'last_checkpoint'
    named = note.read_text().strip() if note.is_file() else ''
    for path in (folder / Path(named).name, Path(named)):
        if named and path.is_file():
            return str(path)
    return max(_numbered(folder), default=(0, None))[1]


def _numbered(folder: Path) -> list[tuple[int, str]]:
    """(N, path) of the checkpoints that mmengine numbers."""
    found = (
        (re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name), path)
        for path in folder.glob('*_*.pth')
    )
    return [(int(match[1]), str(path)) for match, path in found if match]


def _earlier(filename: str) -> str:
    """Offer the last whole checkpoint before a damaged one."""
    folder, name = os.path.split(os.path.abspath(filename))
    numbered = sorted(_numbered(Path(folder)))
    own = next((n for n, path in numbered if os.path.basename(path) == name), None)
    for n, path in reversed(numbered):
        if own is not None and n < own and _is_whole(path):
            return f'; the one before it is whole: {path} (in training: --resume {path})'
    return '; there is no whole one before it in its folder'


def _is_whole(path: str) -> bool:
    """Whether every part of torch's zip file agrees with its checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises many kinds
        return False


def register_loader() -> None:
    """Make mmengine's Runner (test, resume, load_from) read local files through
    `load_checkpoint_file`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_checkpoint_file, force=True)
