"""Checkpoints: loaded without running code of the file, found after a crash, released as
safetensors.

torch >= 2.6 refuses mmengine's files by default, because besides tensors they contain its
HistoryBuffer and numpy arrays. The usual advice is to switch the check off, and then a checkpoint
can run any code. Here torch's restricted unpickler stays in force and is told of the few names
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

import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stratified3d.plain_arrays import MULTIARRAY, Array, Kind, scalar, unwrap
from stratified3d.shipped import find_shipped

# mmengine's classes are pickled together with these methods
_METHODS = {
    HistoryBuffer: ('mean', 'min', 'max', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}
# what messages of torch's restricted unpickler say that it refused
_REFUSALS = re.compile(
    r'(GLOBAL|global) [\w.]+|a checkpoint may not [^\n]*|numpy arrays [^\n]*|Unsupported \w+ \w+'
)


def _method(owner: Any, name: str) -> Any:
    """Replaces builtins.getattr: fetches the methods above and nothing else."""
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'a checkpoint may not fetch attribute {name!r} of {owner!r}')


def _empty_bytes(*arguments: Any) -> bytes:
    """Replaces builtins.bytes, as which the memory of an empty array is pickled."""
    if arguments:
        raise pickle.UnpicklingError('a checkpoint may not call bytes with arguments')
    return b''


def _known_globals() -> list:
    """What a file may name, and what it gets for it."""
    known: list = [
        *_METHODS,
        (Array, 'numpy.ndarray'),
        (Kind, 'numpy.dtype'),
        (_method, 'builtins.getattr'),
        (_empty_bytes, 'builtins.bytes'),
    ]
    for module in MULTIARRAY:
        known.append((Array, f'{module}._reconstruct'))
        known.append((scalar, f'{module}.scalar'))
    return known


def load_checkpoint_file(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint of mmengine's CheckpointHook, or a .safetensors file, from the local disk.

    Args:
        filename: path; `~` is expanded, and `stratified3d::` names are found.
        map_location: as in torch.load.
    Returns:
        The content of the file: state_dict, meta, message_hub, and optimizer and schedulers where
        saved. A .safetensors file gives state_dict and meta, whose dataset_meta names the classes
        if the file does.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged (the message names the one before it), or asks for
            something that no checkpoint needs.
    """
    filename = os.path.expanduser(find_shipped(filename))
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'there is no checkpoint {filename}')
    if filename.endswith('.safetensors'):
        return _load_safetensors(filename, map_location)

    with open(filename, 'rb') as file:
        is_archive = file.read(2) == b'PK'
    if is_archive and _is_inflated(filename):
        raise ValueError(
            f'{filename}: not loaded, because its parts are compressed, as in a TorchScript '
            'archive, or larger than the file; torch.save stores weights as they are'
        )
    if is_archive and not _is_whole(filename):  # torch does not check the checksums
        raise ValueError(
            f'{filename}: damaged or cut short (its parts or their checksums are not complete)'
            f'{_earlier(filename)}'
        )

    content = _load_restricted(filename, map_location)
    if not isinstance(content, dict):
        raise ValueError(f'{filename}: contains a {type(content).__name__}, not a checkpoint')
    return content


def _load_restricted(filename: str, map_location: Any) -> Any:
    """Read a file by torch's restricted unpickler."""
    try:
        with torch.serialization.safe_globals(_known_globals()):
            content = torch.load(filename, map_location=map_location, weights_only=True)
            content = unwrap(content, os.path.getsize(filename), (HistoryBuffer,))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{filename}: not loaded, because it contains more than weights and logs, or is '
            f'damaged{_reason(error)}{_earlier(filename)}'
        ) from error
    # a damaged pickle fails in any way; what it could name has been refused above
    except Exception as error:
        raise ValueError(
            f'{filename}: damaged or cut short{_reason(error)}{_earlier(filename)}'
        ) from error
    return content


def _reason(error: Exception) -> str:
    """What torch refused, in brackets, without its advice to switch the check off."""
    text = str(error)
    found = _REFUSALS.search(text)
    if found:
        return f' ({found[0]})'
    if 'weights_only' in text:
        return f' ({type(error).__name__})'
    first_line = text.split('\n')[0]
    return f' ({first_line})'


def _load_safetensors(filename: str, map_location: Any) -> dict:
    try:
        with safe_open(filename, 'pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f'{filename}: damaged or cut short ({error})') from error
    if map_location is not None and not callable(map_location):
        state = {name: value.to(map_location) for name, value in state.items()}

    meta = {}
    if 'classes' in notes:
        meta['dataset_meta'] = dict(classes=json.loads(notes['classes']))
    return dict(state_dict=state, meta=meta)


def trained_classes(content: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes that a checkpoint was trained on; None where it does not name them."""
    meta = content.get('meta') or {}
    dataset_meta = meta.get('dataset_meta') or {}
    return dataset_meta.get('classes')


def save_weights(
    filename: str | Path,
    state: Mapping[str, Tensor],
    classes: Sequence[str] | None = None,
    half: bool = False,
) -> None:
    """Write weights alone as .safetensors, a format for nothing else; the file is never partial.

    Args:
        filename: ends in .safetensors.
        state: a model's state_dict.
        classes: what the labels count; loading checks it.
        half: write fp32 numbers as fp16, in half the room; a model that loads them converts them
            to fp32.
    Raises:
        ValueError: another suffix, or a number that fp16 cannot represent.
    """
    if not str(filename).endswith('.safetensors'):
        raise ValueError(f'{filename}: weights are released as .safetensors')
    notes = dict(format='pt')
    if classes is not None:
        notes['classes'] = json.dumps(list(classes))

    saved = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if half:
        saved = {name: _to_half(value, f'{filename}: {name}') for name, value in saved.items()}

    partial = Path(f'{filename}.partial')
    save_file(saved, partial, notes)
    os.replace(partial, filename)


def _to_half(value: Tensor, name: str) -> Tensor:
    """fp32 as fp16; other types as they are."""
    half = value.half() if value.dtype == torch.float32 else value
    if not half.isfinite().all():
        largest = float(value.abs().max())
        raise ValueError(f'{name}: fp16 cannot represent its numbers, up to {largest:g}')
    return half


def check_fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    filename: str,
    classes: Sequence[str] | None = None,
    own_classes: Sequence[str] | None = None,
    optional: str | None = None,
) -> str:
    """Compare the names and shapes of weights with those of a model.

    Args:
        model: that is to have the weights.
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

    differences = _differences(model.state_dict(), state)
    parts = [_summarize(title, found) for title, found in differences.items() if found]
    if not parts:
        return ''

    message = f'{filename}: weights of another model: {", ".join(parts)}'
    names = [name for found in differences.values() for name in found]
    if not optional or not all(name.startswith(optional) for name in names):
        raise ValueError(message)
    return message


def _differences(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, dict[str, str]]:
    """{kind of difference: {name: description}} between a model's weights and others."""
    missing = {name: name for name in own if name not in state}
    unknown = {name: name for name in state if name not in own}
    reshaped = {}

    for name, value in state.items():
        if not isinstance(value, Tensor):
            unknown[name] = name
        elif name in own and value.shape != own[name].shape:
            reshaped[name] = f'{name} {tuple(value.shape)}, not {tuple(own[name].shape)}'
    return {'missing': missing, 'unknown': unknown, 'of another shape': reshaped}


def _summarize(title: str, found: Mapping[str, str]) -> str:
    """Number of differences of one kind, and the first five of them."""
    names = '; '.join(sorted(found.values())[:5])
    more = '; ...' if len(found) > 5 else ''
    return f'{len(found)} {title} ({names}{more})'


def latest_checkpoint(folder: str | Path) -> str | None:
    """The checkpoint from which a training in a work folder resumes; None if there is none.

    It is the one that the file `last_checkpoint` names. A run killed at the wrong moment leaves
    that file empty or outdated; then it is the epoch_N.pth or iter_N.pth of the largest N.
    """
    folder = Path(folder)
    note = folder / 'last_checkpoint'
    named = note.read_text().strip() if note.is_file() else ''
    if named:
        for path in (folder / Path(named).name, Path(named)):
            if path.is_file():
                return str(path)

    numbered = _numbered(folder)
    return max(numbered)[1] if numbered else None


def _numbered(folder: Path) -> list[tuple[int, str]]:
    """(N, path) of the checkpoints that mmengine numbers."""
    numbered = []
    for path in folder.glob('*_*.pth'):
        match = re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name)
        if match:
            numbered.append((int(match[1]), str(path)))
    return numbered


def _earlier(filename: str) -> str:
    """Name the last whole checkpoint before a damaged one, for an error message."""
    folder, name = os.path.split(os.path.abspath(filename))
    numbered = sorted(_numbered(Path(folder)))
    own = next((number for number, path in numbered if os.path.basename(path) == name), None)

    if own is not None:
        for number, path in reversed(numbered):
            if number < own and _is_whole(path):
                return f'; the one before it is whole: {path} (in training: --resume {path})'
    return '; there is no whole one before it in its folder'


def _is_whole(path: str) -> bool:
    """Whether every part of torch's zip file agrees with its checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises many kinds
        return False


def _is_inflated(path: str) -> bool:
    """Whether reading torch's zip file would take more memory than its size."""
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
    except Exception:  # damaged: no part is read
        return False
    is_compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    return is_compressed or sum(part.file_size for part in parts) > os.path.getsize(path)


def register_loader() -> None:
    """Make mmengine's Runner (test, resume, load_from) read local files through
    `load_checkpoint_file`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_checkpoint_file, force=True)
