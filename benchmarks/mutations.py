"""Damage point files at random and watch what the readers make of it.

Every outcome has to be a ValueError or points: no other error, no crash, no hang, and no more
memory than ten times the file.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import resource
import tracemalloc
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.point_samples import WRITERS, random_sweep
from stratified3d.datasets.io.point_files import read_points

PATIENCE = 120.0  # s for one file, on a machine that is busy
_POINTS = 2000
_MAX_INFLATION = 10
_FREE_BYTES = 2**21  # that any file may take
_MAX_ADDRESSES = 2**30  # bytes beyond those of the process
_SMALL = 10_000  # bytes
_HEADER = 400  # bytes; half of the damage is done there
_NUMBERS = [b'0', b'-1', b'3', b'65536', b'2147483647', b'99999999999', b'9' * 40, b'nan', b'1e99']
_WORDS = [bytes(4), b'\xff' * 4, b'\xff\xff\xff\x7f', b'\xff' * 8, b'\xff' * 7 + b'\x7f']


class Outcome(NamedTuple):
    """What reading the damaged files of one format came to.

    Attributes:
        name: of the sample.
        read: number of files that gave points.
        refused: number of files that ended in a ValueError.
        failure: what went wrong with the last file; empty if nothing did.
        last: index of the last file.
        peak: largest memory that one file took, as a multiple of its size; files below _SMALL
            bytes are left out.
    """

    name: str
    read: int
    refused: int
    failure: str
    last: int
    peak: float


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Damage a file in one to four places.

    Args:
        content: of the file.
        draw: random numbers.
    """
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(max(1, min(len(content), draw.choice([_HEADER, len(content)]))))
        length = draw.choice([1, 1, 4, draw.randint(1, 200)])
        end = start + length
        middle = content[start:end]
        kind = draw.randrange(8)
        if kind == 0:
            middle = b''
        elif kind == 1:
            middle = middle + middle
        elif kind == 2:
            middle = draw.randbytes(length)
        elif kind == 3:
            middle = draw.randbytes(length) + middle
        elif kind == 4:
            content = content[: start + draw.randrange(len(content) + 1)]
        elif kind == 5:
            middle = draw.choice(_WORDS)
            end = start + len(middle)
        elif kind == 6:
            middle = middle[:-1] + bytes([middle[-1] ^ 1 << draw.randrange(8)]) if middle else b''
        else:
            start, end = _find_number(content, start)
            middle = draw.choice(_NUMBERS)
        content = content[:start] + middle + content[end:]
    return content


def _find_number(content: bytes, start: int) -> tuple[int, int]:
    """Place of the first number in digits behind a place."""
    found = re.search(rb'\d+', content[start : start + _HEADER])
    return (start + found.start(), start + found.end()) if found else (start, start)


def read_mutations(
    folder: Path,
    name: str,
    mutations: range,
    seed: int,
    read: Callable[[Path], np.ndarray] = read_points,
) -> Outcome:
    """Read damaged files of one format in a process of its own.

    Args:
        folder: for the files; the last one stays there.
        name: of the sample, from WRITERS.
        mutations: indices; a file depends on its index, name and seed only.
        seed: of the random numbers.
        read: the reader.
    Raises:
        AssertionError: the undamaged file does not give its points.
    """
    path = folder / name
    points = random_sweep(_POINTS)
    WRITERS[name](path, points)
    content = path.read_bytes()
    np.testing.assert_allclose(read_points(path), points, atol=1e-3)  # .las rounds

    context = multiprocessing.get_context('fork')
    results, send = context.Pipe(duplex=False)
    arguments = (path, content, mutations, seed, read, send)
    process = context.Process(target=_read_in_process, args=arguments)
    process.start()
    send.close()

    outcome = Outcome(name, 0, 0, '', mutations.start, 0.0)
    while True:
        if not results.poll(PATIENCE):
            process.kill()
            outcome = outcome._replace(failure=f'no answer within {PATIENCE:g} s')
            break
        try:
            outcome = results.recv()
        except EOFError:
            break
    process.join()
    if process.exitcode and not outcome.failure:
        outcome = outcome._replace(failure=f'the process ended with status {process.exitcode}')
    return outcome


def _read_in_process(
    path: Path,
    content: bytes,
    mutations: range,
    seed: int,
    read: Callable[[Path], np.ndarray],
    send: Connection,
) -> None:
    """Read one damaged file after the other; send the outcome before and after each."""
    warnings.simplefilter('ignore')
    read_points(path)  # imports what it needs
    limit = psutil.Process().memory_info().vms + _MAX_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tracemalloc.start()

    outcome = Outcome(path.name, 0, 0, '', mutations.start, 0.0)
    for index in mutations:
        damaged = mutate(content, random.Random(f'{seed} {path.name} {index}'))
        path.write_bytes(damaged)
        outcome = outcome._replace(last=index)
        send.send(outcome)
        outcome = _watch(path, outcome, read)
        if outcome.failure:
            break
    send.send(outcome)


def _watch(path: Path, outcome: Outcome, read: Callable[[Path], np.ndarray]) -> Outcome:
    size = path.stat().st_size
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        points = read(path)
    except ValueError:
        outcome = outcome._replace(refused=outcome.refused + 1)
    except BaseException as error:
        return outcome._replace(failure=f'{type(error).__name__}: {error}')
    else:
        outcome = outcome._replace(read=outcome.read + 1)
        if points.dtype != np.float32 or points.shape[1:] != (4,):
            return outcome._replace(failure=f'points are {points.dtype} {points.shape}')

    taken = tracemalloc.get_traced_memory()[1] - before
    peak = taken / max(size, 1)
    if taken > _MAX_INFLATION * size + _FREE_BYTES:
        return outcome._replace(failure=f'{taken} bytes of memory for a file of {size}', peak=peak)
    return outcome if size < _SMALL else outcome._replace(peak=max(outcome.peak, peak))
