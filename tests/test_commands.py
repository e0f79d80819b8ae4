"""What commands print at their start and on Ctrl-C; whole commands are interrupted in
tests/tools/test_quickstart.py."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from stratified3d.commands import environment_of_step, quiet_console

SCRIPT = """
import os, signal, time
from stratified3d.commands import begin_command
begin_command('tool.py', 'do it again')
print('begun', flush=True)
{body}
"""


def interrupt(body, **variables):
    """Run a command, send it SIGINT once it has begun; its status and what it printed."""
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    assert process.stdout.readline() == 'begun\n'
    time.sleep(0.3)  # into the body
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def test_interrupt_is_one_line_and_status_130():
    assert interrupt('time.sleep(60)') == (130, '', '\ntool.py: interrupted; do it again\n')


def test_interrupt_runs_what_is_to_be_cleaned_up():
    body = 'try:\n    time.sleep(60)\nfinally:\n    print("closed")'
    assert interrupt(body)[:2] == (130, 'closed\n')


def test_interrupt_that_python_cannot_raise_is_raised_again():
    body = (
        'class Slow:\n'
        '    def __del__(self):\n'
        '        time.sleep(60)\n'  # interrupted there, it is only reported
        'slow = Slow()\n'
        'del slow\n'
        'time.sleep(60)'
    )
    assert interrupt(body) == (130, '', '\ntool.py: interrupted; do it again\n')


def test_interrupted_step_leaves_the_line_to_the_command_that_runs_it():
    status, _, errors = interrupt('time.sleep(60)', STRATIFIED3D_PARENT='1')
    assert (status, errors) == (130, '')
    assert environment_of_step()['STRATIFIED3D_PARENT'] == str(os.getpid())


def test_interrupted_workers_end_without_a_word():
    body = (
        'from stratified3d.resumable import worker_pool\n'
        'with worker_pool(2, fork=True) as pool:\n'
        '    futures = [pool.submit(time.sleep, 3) for _ in range(4)]\n'
        '    [future.result() for future in futures]'
    )
    assert interrupt(body)[0::2] == (130, '\ntool.py: interrupted; do it again\n')


def test_other_errors_keep_their_traceback():
    process = subprocess.run(
        [sys.executable, '-c', SCRIPT.format(body='1 / 0')], capture_output=True, text=True
    )
    assert process.returncode == 1 and 'ZeroDivisionError' in process.stderr


@pytest.fixture
def log(tmp_path):
    """Log a message on a quiet console and to a file; returns both contents."""

    def write(message):
        logger = logging.Logger('test')
        seen = []
        console = logging.StreamHandler()
        console.emit = lambda record: seen.append(record.getMessage())
        logger.addHandler(console)
        logger.addHandler(logging.FileHandler(tmp_path / 'log.txt'))
        quiet_console(logger)
        logger.info(message)
        return seen, (tmp_path / 'log.txt').read_text()

    return write


@pytest.mark.parametrize(
    'message',
    [
        'Config:\nmodel = dict()',
        '\n' + '-' * 60 + '\nSystem environment:\n    sys.platform: linux',
        'load 4015 car database infos in DataBaseSampler',
        '\nhead.shared_conv.conv.weight - torch.Size([64, 192, 3, 3]): \nThe value is the same',
    ],
)
def test_long_messages_go_to_the_log_file_only(message, log, monkeypatch):
    monkeypatch.delenv('STRATIFIED3D_VERBOSE', raising=False)
    seen, written = log(message)
    assert not seen and message in written


def test_messages_of_users_stay_on_the_console(log):
    assert log('Epoch(train) [1][20/80]  loss: 5.39')[0]
    assert log('v1.0-mini: Config files are read')[0]


def test_everything_is_shown_where_it_is_asked_for(log, monkeypatch):
    monkeypatch.setenv('STRATIFIED3D_VERBOSE', '1')
    assert log('Config:\nmodel = dict()')[0]


def test_deprecations_of_mmengine_are_not_logged(log, monkeypatch):
    monkeypatch.delenv('STRATIFIED3D_VERBOSE', raising=False)
    assert log('"FileClient" will be deprecated in future') == ([], '')
