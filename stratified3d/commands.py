"""What every command does before it imports anything large: it starts quietly, and Ctrl-C ends it
with one line."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import re
import signal
import sys
import threading
import warnings

INTERRUPTED = 128 + signal.SIGINT  # status of a command that ended by Ctrl-C
_PARENT = 'STRATIFIED3D_PARENT'
# what mmengine and mmdet3d log at the start of every run, hundreds of lines
_LONG_MESSAGES = re.compile(
    r'\s*(-{10,}\s*(System environment.*)?$|Config:|Hooks will be executed|Using env variable'
    r'|load \d+ \w+ database infos|After filter database|The number of instances per category'
    r'|Distributed training is not used|\S+ is not a meta file'
    r'|\S+ - torch\.Size\(.*\):)',
    re.DOTALL,
)
# mmengine's CheckpointHook makes mmengine itself warn of these
_DEPRECATIONS = ('"FileClient" will be', '"HardDiskBackend" is the alias')


def begin_command(name: str, hint: str = '') -> None:
    """Start a command: hide warnings that users cannot act on, and end cleanly on Ctrl-C.

    Ctrl-C at any moment from now on, imports included, prints one line and ends with status 130.
    STRATIFIED3D_VERBOSE=1 shows the warnings.

    Args:
        name: of the command.
        hint: how to go on after Ctrl-C.
    """
    hide_startup_warnings()
    end_on_interrupt(name, hint)


def command_parser(prog: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with examples.

    Args:
        prog: how the user calls the command.
        description: of what it does.
        examples: lines, in which `{prog}` stands for the call.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples.replace('{prog}', prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def is_verbose() -> bool:
    """Return whether the user asked for everything that libraries print."""
    return os.environ.get('STRATIFIED3D_VERBOSE') == '1'


def hide_startup_warnings() -> None:
    """Hide warnings that mmengine and torch cause by their own code.

    Call it before mmengine is imported. Warnings of anything else are shown as before.
    """
    if is_verbose():
        return
    # mmengine imports pkg_resources, and reloads it to look for packages
    warnings.filterwarnings(
        'ignore',
        message='pkg_resources is deprecated',
        category=UserWarning,
        module=r'(mmengine|importlib)(\.|$)',
    )
    # torch's nested tensors call what its fx package warns of
    logging.getLogger('torch.fx._symbolic_trace').addFilter(_is_not_about_tracing)


def quiet_console(logger: logging.Logger) -> None:
    """Keep long messages about the start of a run off the console; log files still get them."""
    if is_verbose():
        return
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_for_console)
    logger.addFilter(_is_no_deprecation)


def _is_for_console(record: logging.LogRecord) -> bool:
    return _LONG_MESSAGES.match(record.getMessage()) is None


def _is_no_deprecation(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_DEPRECATIONS)


def _is_not_about_tracing(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith('is_fx_tracing will return true')


def end_on_interrupt(name: str, hint: str = '') -> None:
    """Let Ctrl-C end this process with one line and status 130, without a traceback."""
    is_interrupted = False
    show = sys.excepthook
    show_unraisable = sys.unraisablehook

    def show_error(kind, error, traceback):
        nonlocal is_interrupted
        if not issubclass(kind, KeyboardInterrupt):
            show(kind, error, traceback)
            return
        is_interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near
        if _PARENT not in os.environ:  # which prints its own line
            print(f'\n{name}: interrupted{"; " if hint else ""}{hint}', file=sys.stderr)

    def interrupt_again(unraisable):
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            show_unraisable(unraisable)
            return
        # it was raised in a callback, which Python does not leave by an exception
        main = threading.main_thread().ident
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()

    def end():
        if is_interrupted:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)  # Python would end by the signal instead

    sys.excepthook = show_error
    sys.unraisablehook = interrupt_again
    atexit.register(end)  # as the first, so it runs as the last: worker processes are gone by then


def environment_of_step() -> dict[str, str]:
    """Return the environment for a command that is a step of this one: it leaves the line about
    Ctrl-C to this one."""
    return {**os.environ, _PARENT: str(os.getpid())}
