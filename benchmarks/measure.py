"""Time, memory and the ceilings of a device."""

from __future__ import annotations

import gc
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import torch


class Timing(NamedTuple):
    """Milliseconds: median and quartiles over the runs."""

    median: float
    low: float
    high: float


def timed(function: Callable[[], Any], device: torch.device, runs: int, warmup: int = 1) -> Timing:
    """Run it warmup + runs times, each after the device has finished the one before."""
    spent = []
    for _ in range(warmup + runs):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        spent.append(1e3 * (time.perf_counter() - start))
    return spread(spent[warmup:])


def spread(values: Sequence[float]) -> Timing:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return Timing(statistics.median(values), low, high)


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """MiB that one run holds at most on top of what is there, by torch's own count of what it hands
    out."""
    gc.collect()
    wait(device)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == '[memory]'
    )
    return max(itertools.accumulate((size for _, size in events), initial=0)) / 2**20


@contextmanager
def bounded_memory(device: torch.device, share: float = 0.9) -> Iterator[None]:
    """On a CPU: who asks for more than this share of the memory that is free now is refused it, as
    on a GPU, where otherwise the system would end the whole process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if device.type == 'cpu':
        most = int(share * psutil.virtual_memory().available) + psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches here and now: GB/s of a copy (read and written), GFLOP/s of a matrix
    product."""
    size = 1 << (28 if device.type == 'cuda' else 24)
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    copy = timed(lambda: target.copy_(source), device, 5, 2)
    side = 8192 if device.type == 'cuda' else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = timed(lambda: a @ b, device, 5, 2)
    return dict(copy_gb_s=8 * size / copy.low / 1e6, matmul_gflop_s=2 * side**3 / product.low / 1e6)
