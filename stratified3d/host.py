"""Running the scripts that mmdet3d installs with its package, so that users need no clone of it."""

from __future__ import annotations

import argparse
import errno
import os
import re
import runpy
import sys
from pathlib import Path

from stratified3d.commands import quiet_console
from stratified3d.config_options import ConfigOptions

_PACKAGE = str(Path(__file__).parent) + os.sep
_DISK_ERRORS = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the quota is used up',
    errno.EFBIG: 'file size limit',
}


def run_host_tool(name: str, parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run mmdet3d's own tools/<name> in this process.

    An error that the user can fix ends the process with one message and status 1;
    STRATIFIED3D_TRACEBACK=1 shows where it came from.

    Args:
        name: train.py or test.py.
        parser: its help is printed before mmdet3d's.
        arguments: for the script.
    Raises:
        FileNotFoundError: the installed mmdet3d has no such script.
    """
    # threads that spin at a barrier take the core from the thread that they wait for as soon as
    # anything else runs, and loader processes always do; read when torch is imported
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    script = _find_script(name)
    sys.argv = [str(script), *arguments]
    if {'-h', '--help'} & {*arguments}:
        parser.print_help()
        print('\nall options, by mmdet3d:', flush=True)
    import mmengine.config
    from mmengine.logging import MMLogger

    mmengine.config.DictAction = ConfigOptions  # the script takes it from there
    quiet_console(MMLogger.get_current_instance())  # the config is read before the runner's logger
    try:
        runpy.run_path(str(script), run_name='__main__')
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get('STRATIFIED3D_TRACEBACK') == '1':
            raise
        sys.exit(f'{name}: {message}')
    return 0


def _find_script(name: str) -> Path:
    import mmdet3d

    script = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / name
    if not script.is_file():
        raise FileNotFoundError(
            f'mmdet3d {mmdet3d.__version__} has no {script}: reinstall it from its wheel '
            '(pip install --force-reinstall --no-deps mmdet3d==1.4.0)'
        )
    return script


def user_message(error: BaseException) -> str | None:
    """The message of an error that the user can fix; None for others, which need a traceback.

    It is an error that this package raised, wherever it was caught and raised again on its way,
    or a full disk.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in _DISK_ERRORS:
            return _disk_message(current)
        if isinstance(current, (ValueError, OSError)):
            message = _own_message(current)
            if message is not None:
                return message
        current = current.__cause__ or current.__context__
    return None


def _disk_message(error: OSError) -> str:
    reason = _DISK_ERRORS[error.errno or 0]
    place = f' at {error.filename}' if error.filename else ''
    return (
        f'{reason}{place} ({error.strerror}); free some space, then add --resume to resume from '
        'the last checkpoint'
    )


def _own_message(error: BaseException) -> str | None:
    """The text of an error that was raised in a file of this package."""
    text = str(error)
    if text.startswith('Caught '):  # in a worker of the data loader, whose traceback is in the text
        files = re.findall(r'^ *File "([^"]+)"', text, re.M)
        last = re.split(rf'^{type(error).__name__}: ', text, flags=re.M)[-1].strip()
        return last if files and files[-1].startswith(_PACKAGE) else None

    step = error.__traceback__
    if step is None:
        return None
    while step.tb_next is not None:
        step = step.tb_next
    is_own = step.tb_frame.f_code.co_filename.startswith(_PACKAGE)
    return text if is_own else None
