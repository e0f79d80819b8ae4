"""Checks that run apart: one that fails, crashes or hangs does not stop the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

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
    threading.Thread(target=_end_with_parent, args=[os.getppid()], daemon=True).start()
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
        is_found = isinstance(error, AssertionError) and str(error)
        message = str(error) if is_found else _describe(error)
        return FAILED, message, 'CUDA error' in message or not _responds(device)


def _responds(device: str) -> bool:
    """Whether a GPU can still be used by this process."""
    if not device.startswith('cuda'):
        return True
    try:
        torch.cuda.synchronize(device)
    except Exception:  # of torch's, or of Triton's
        return False
    return True


def _end_with_parent(parent: int) -> None:
    """End this process once the one that waits for its results is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _describe(error: Exception) -> str:
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{Path(frame.filename).name}:{frame.lineno}'
    return f'{type(error).__name__}: {error} ({place})'[:1000]


@dataclass
class _Worker:
    """The process of a group, and the checks of the group that have no result yet."""

    checks: list[Check]
    stem: Path
    command: list[str]
    limit: float
    process: subprocess.Popen | None = None
    num_starts: int = 0
    num_read: int = 0  # results of this process
    since: float = 0.0  # the start of the process, or its last result

    @property
    def path(self) -> Path:
        """The results of this process alone: another one may have been killed within a line."""
        return self.stem.with_name(f'{self.stem.name}-{self.num_starts}.jsonl')

    def start(self) -> None:
        self.num_starts += 1
        self.num_read = 0
        names = [check.name for check in self.checks]
        with self.path.with_suffix('.log').open('w') as log:
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
        if status is None and self.checks and spent > self.limit:
            yield from self._stop(spent)
        is_expected = status == _BROKEN_DEVICE and self.num_read > 0
        if status is not None and self.checks and not is_expected:
            yield self._give_up(CRASHED, f'{_meaning(status)}: {self._end_of_log()}', spent)
        if self.checks and self.process.poll() is not None:
            self.start()

    def _stop(self, spent: float) -> list[Result]:
        """Kill a process that takes too long; its last results, or that it was stopped."""
        self.kill()
        results = list(self._read())  # that came in the last moment
        return results or [self._give_up(TIMED_OUT, f'no result after {self.limit:g} s', spent)]

    def _read(self) -> Iterator[Result]:
        if not self.path.exists():
            return
        lines = self.path.read_text().split('\n')[:-1]  # the last one may be half written
        for line in lines[self.num_read :]:
            result = Result(**json.loads(line))
            self.num_read += 1
            self.since = time.perf_counter()
            self.checks = [check for check in self.checks if check.name != result.check]
            yield result

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
            _Worker(group, Path(folder) / str(i), list(command), limit)
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
