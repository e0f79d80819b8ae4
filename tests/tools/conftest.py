"""Commands that are interrupted as a shell does it."""

import os
import subprocess
import time

import pytest


@pytest.fixture(scope='session')
def start_group():
    """Starts a command in a process group of its own, as a shell does, and returns its process."""

    def start(command):
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope='session')
def check_group_is_gone():
    """Waits until no process of a group is left, and fails if one stays."""

    def check(group):
        deadline = time.monotonic() + 30
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)

    return check
