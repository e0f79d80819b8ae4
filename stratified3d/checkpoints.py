"""Loading mmengine checkpoints under torch >= 2.6 without giving control to the file.

torch.load refuses them by default, because besides tensors they hold mmengine's HistoryBuffer and numpy arrays. The
remedies in circulation switch the check off, and a checkpoint can then run any code. Here torch's restricted
unpickler stays in force and is told of the few names that such a file needs.
"""
from __future__ import annotations

import os
import pickle
import re
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

# what mmengine's own classes are pickled with: methods, fetched by name
_METHODS = {HistoryBuffer: ('mean', 'min', 'max', 'current'),
            OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear')}


def _method(owner: Any, name: str) -> Any:
    """Stands in for builtins.getattr."""
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'a checkpoint may not fetch attribute {name!r} of {owner!r}')


def _known_globals() -> list:
    reconstruct, scalar = np.array(0.0).__reduce__()[0], np.float64(0).__reduce__()[0]
    # numpy 2 moved these two; files of either version are read by either version
    moved = [(f, f'{module}.multiarray.{name}') for module in ('numpy.core', 'numpy._core')
             for f, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))]
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [*_METHODS, np.ndarray, np.dtype, *dtypes, *moved, (_method, 'builtins.getattr')]


def load_checkpoint_file(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint written by mmengine's CheckpointHook from the local disk.

    Args:
        filename: path; `~` is expanded.
        map_location: as in torch.load.
    Returns:
        What the file holds: state_dict, meta, message_hub, and optimizer and schedulers where saved.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or asks for something that no checkpoint needs.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'there is no checkpoint {filename}')
    try:
        with torch.serialization.safe_globals(_known_globals()):
            return torch.load(filename, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's advice is to switch the check off; only the name it stumbled over is passed on
        found = re.search(r'(GLOBAL|global) ([\w.]+)|a checkpoint may not [^\n]*', str(error))
        reason = found[0] if found else str(error).split('\n')[0]
        raise ValueError(f'{filename}: not loaded, because it holds more than weights and logs, or is damaged '
                         f'({reason})') from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{filename}: damaged or cut short ({error}); take an earlier checkpoint') from error


def register_loader() -> None:
    """Make mmengine's Runner (test, resume, load_from) read local files through `load_checkpoint_file`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_checkpoint_file, force=True)
