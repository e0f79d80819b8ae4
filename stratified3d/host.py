"""Running the scripts that mmdet3d installs with its package, so that users need no clone of it."""

from __future__ import annotations

import errno
import os
import re
import runpy
import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep
_DISK = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the quota is used up',
    errno.EFBIG: 'file size limit',
}


def run_host_tool(name: str) -> None:
    """Run mmdet3d's own tools/<name> in this process, with this process's arguments.

    An error that says what the user can mend ends the process with that message and status 1;
    STRATIFIED3D_TRACEBACK=1 shows where it came from.

    Raises:
        FileNotFoundError: the installed mmdet3d ships no such script.
    """
    # threads that spin at a barrier starve the one that they wait for as soon as anything else
    # runs, and loader processes always do; read when torch is imported
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    import mmdet3d

    script = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / name
    if not script.is_file():
        raise FileNotFoundError(
            f'mmdet3d {mmdet3d.__version__} has no {script}: reinstall it from its wheel '
            '(pip install --force-reinstall --no-deps mmdet3d==1.4.0)'
        )
    sys.argv[0] = str(script)
    try:
        runpy.run_path(str(script), run_name='__main__')
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get('STRATIFIED3D_TRACEBACK') == '1':
            raise
        sys.exit(f'{name}: {message}')


def explain(error: BaseException) -> str | None:
    """The message of an exception that this package raised for the user to read, wherever it was
    caught and raised again on its way; or of a full disk. None for anything else, which wants its
    traceback."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return (
                f'{_DISK[error.errno]}{f" at {error.filename}" if error.filename else ""} ({error.strerror}); make '
                'room; after that --resume goes on from the last checkpoint'
            )
        if isinstance(error, (ValueError, OSError)):
            message = _own_message(error)
            if message is not None:
                return message
        error = error.__cause__ or error.__context__
    return None


def _own_message(error: BaseException) -> str | None:
    text = str(error)
    if text.startswith('Caught '):  # in a worker of the data loader, whose traceback is in the text
        files = re.findall(r'^ *File "([^"]+)"', text, re.M)
        last = re.split(rf'^{type(error).__name__}: ', text, flags=re.M)[-1].strip()
        return last if files and files[-1].startswith(_PACKAGE) else None
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return (
        text if step is not None and step.tb_frame.f_code.co_filename.startswith(_PACKAGE) else None
    )
