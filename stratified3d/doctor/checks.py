"""Checks that run apart: one that fails, crashes or hangs does not stop the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, SKIPPED = 'passed', 'failed', 'skipped'
CRASHED, TIMED_OUT = 'crashed', 'timed out'
_BROKEN_DEVICE = 3  # status of a worker whose device cannot be used any more
_POLL = 0.1  # seconds between two looks at the workers


class Check(NamedTuple):
    """A check.

    group: checks of one group run one after the other in a process of their own.
    run: called with the device; returns what it measured, and raises where that is wrong.
    """

    group: str
    name: str
    run: Callable[[str], str]


class SkippedCheck(Exception):
    """Raised by a check that cannot run here, with the reason."""


@dataclass
class Result:
    """What became of a check; seconds include everything that was compiled for it."""

    check: str
    outcome: str
    detail: str
    seconds: float

    @property
    def is_good(self) -> bool:
        return self.outcome in (PASSED, SKIPPED)


def run_in_process(checks: Sequence[Check], device: str, path: Path) -> int:
    """Run checks in this process, and append what became of each to a file as a line of JSON.

    Returns:
        0, or 3 after an error that makes the device useless to this process: what is left of the
        checks needs another one.
    """
    with path.open('a') as file:
        for check in checks:
            begin = time.perf_counter()
            outcome, detail, is_broken = _run(check, device)
            seconds = round(time.perf_counter() - begin, 2)
            result = Result(check.name, outcome, detail, seconds)
            file.write(json.dumps(asdict(result)) + '\n')
            file.flush()
            if is_broken:
                return _BROKEN_DEVICE
    return 0


def _run(check: Check, device: str) -> tuple[str, str, bool]:
    """Outcome, detail, and whether the device is useless from now on."""
    try:
        return PASSED, check.run(device), False
    except SkippedCheck as reason:
        return SKIPPED, str(reason), False
    except Exception as error:  # whatever is wrong is to be found and reported
        message = str(error) if isinstance(error, AssertionError) else _describe(error)
        return FAILED, message, 'CUDA error' in message


def _describe(error: Exception) -> str:
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{Path(frame.filename).name}:{frame.lineno}'
    return f'{type(error).__name__}: {error} ({place})'[:1000]


@dataclass
class _Worker:
    """The process of a group, and the checks of the group that have no result yet."""

    checks: list[Check]
    path: Path
    command: list[str]
    limit: float
    process: subprocess.Popen | None = None
    since: float = 0.0  # the start of the process, or its last result
    num_read: int = 0

    def start(self) -> None:
        names = [check.name for check in self.checks]
        with self.path.with_suffix('.log').open('a') as log:
            self.process = subprocess.Popen(
                [*self.command, '--worker', str(self.path), *names],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.since = time.perf_counter()

    def poll(self) -> Iterator[Result]:
        """New results; restarts the process where it ended too early."""
        assert self.process is not None, 'poll comes after start'
        status = self.process.poll()  # before the results are read, so that none is missed
        yield from self._read()
        spent = time.perf_counter() - self.since
        if not self.checks:
            return
        if status is None:
            if spent > self.limit:
                self.kill()
                yield self._give_up(TIMED_OUT, f'no result after {self.limit:g} s', spent)
        elif status != _BROKEN_DEVICE:
            yield self._give_up(CRASHED, f'{_meaning(status)}: {self._end_of_log()}', spent)
        if self.process.poll() is not None and self.checks:
            self.start()

    def _read(self) -> Iterator[Result]:
        if not self.path.exists():
            return
        lines = self.path.read_text().split('\n')[:-1]  # the last one may be half written
        for line in lines[self.num_read :]:
            self.num_read += 1
            self.since = time.perf_counter()
            del self.checks[0]
            yield Result(**json.loads(line))

    def _give_up(self, outcome: str, detail: str, seconds: float) -> Result:
        return Result(self.checks.pop(0).name, outcome, detail, round(seconds, 2))

    def _end_of_log(self) -> str:
        return self.path.with_suffix('.log').read_text(errors='replace').strip()[-500:]

    def kill(self) -> None:
        """End the process and all that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _meaning(status: int) -> str:
    return f'killed by signal {-status}' if status < 0 else f'ended with status {status}'


def run_apart(checks: Sequence[Check], command: Sequence[str], limit: float) -> Iterator[Result]:
    """Run checks, each group in a process of its own, all groups at the same time.

    Args:
        command: starts a process; it is given --worker, a path and the names of checks, and hands
            them to `run_in_process`.
        limit: seconds without a result after which a process is killed.
    Yields:
        One result per check, as they come.
    """
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.group, []).append(check)
    with tempfile.TemporaryDirectory(prefix='stratified3d-doctor-') as folder:
        workers = [
            _Worker(group, Path(folder) / f'{i}.jsonl', list(command), limit)
            for i, group in enumerate(groups.values())
        ]
        try:
            for worker in workers:
                worker.start()
            while any(worker.checks for worker in workers):
                for worker in workers:
                    yield from worker.poll()
                time.sleep(_POLL)
        finally:
            for worker in workers:
                worker.kill()
