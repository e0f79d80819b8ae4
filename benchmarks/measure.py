"""Measure time, memory and the ceilings of a device."""

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
    """Run a function warmup + runs times, each time after the device has finished the last."""
    spent: list[float] = []
    for _ in range(warmup + runs):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        spent.append(1e3 * (time.perf_counter() - start))
    return spread(spent[warmup:])


def kernel_time(function: Callable[[], Any], device: torch.device, runs: int = 5) -> float | None:
    """Milliseconds that a GPU computes per call, without the launches and pauses between kernels.

    None on other devices.
    """
    if device.type != 'cuda':
        return None
    function()
    wait(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(runs):
            function()
        wait(device)
    total = sum(event.self_device_time_total for event in profile.key_averages())  # microseconds
    return total / runs / 1e3


def spread(values: Sequence[float]) -> Timing:
    """Median and quartiles."""
    if len(values) == 1:
        return Timing(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), low, high)


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """MiB that one run allocates at most on top of what is allocated already, as torch counts."""
    gc.collect()
    wait(device)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20

    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        function()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == '[memory]'
    ]
    sizes = [size for _, size in sorted(events)]
    return max(itertools.accumulate(sizes, initial=0)) / 2**20


@contextmanager
def bounded_memory(device: torch.device, share: float = 0.9) -> Iterator[None]:
    """On a CPU, limit this process to a share of the memory that is free now.

    An allocation beyond it raises an error as on a GPU; otherwise the system would kill the whole
    process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if device.type == 'cpu':
        free = int(share * psutil.virtual_memory().available)
        limit = free + psutil.Process().memory_info().data
        if hard >= 0:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def wait(device: torch.device) -> None:
    """Wait until the device has finished all work in its queue."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GB/s of a copy (read and written) and GFLOP/s of a matrix product, measured now."""
    cuda = device.type == 'cuda'
    size = 1 << (28 if cuda else 24)
    source = torch.ones(size, device=device)
    target = torch.empty(size, device=device)
    copy = timed(lambda: target.copy_(source), device, runs=5, warmup=2)

    side = 8192 if cuda else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    product = timed(lambda: a @ b, device, runs=5, warmup=2)
    return dict(
        copy_gb_s=8 * size / copy.low / 1e6,
        matmul_gflop_s=2 * side**3 / product.low / 1e6,
    )
