"""The list of checks of a GPU, and the report on them."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from stratified3d import __version__, ops
from stratified3d.doctor import convolutions, detector, execution, functions, kernels
from stratified3d.doctor.checks import FAILED, SKIPPED, Check, Result, SkippedCheck

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LIMIT = 100.0  # seconds without a result after which a process is killed


def list_checks(ops_only: bool) -> list[Check]:
    """All checks; those of the operators alone need torch, triton and numpy, no other package."""
    checks = []
    for dtype in DTYPES:
        group = f'kernels {_name(dtype)}'
        for case in kernels.CASES:
            run = partial(_check_kernels, case=case, dtype=dtype)
            checks.append(Check(group, f'{group}: {case}', run))
    checks += _group(
        'execution',
        {
            'no waiting for the GPU': execution.check_no_wait,
            'CUDA graph': execution.check_graph,
            'torch.compile': execution.check_compile,
            'addresses beyond 32 bits': execution.check_long_addresses,
        },
    )
    checks += _group(
        'functions',
        {
            'segments': functions.check_segments,
            'strata pooling': functions.check_pooling,
            'voxels and windows': functions.check_planning,
            'NMS': functions.check_nms,
        },
    )
    if ops_only:
        return checks

    convolution_checks = {
        _name(dtype): partial(convolutions.check_convolutions, dtype=dtype) for dtype in DTYPES
    }
    half_losses = {
        f'losses in {_name(dtype)}': partial(detector.check_half_losses, dtype=dtype)
        for dtype in (torch.float16, torch.bfloat16)
    }
    checks += _group('sparse convolution', convolution_checks)
    checks += _group(
        'detector',
        {
            'losses and gradients': detector.check_losses,
            **half_losses,
            'predictions': detector.check_predictions,
            'training steps': detector.check_steps,
        },
    )
    return checks


def _group(group: str, checks: Mapping[str, Callable[[str], str]]) -> list[Check]:
    return [Check(group, f'{group}: {name}', run) for name, run in checks.items()]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _check_kernels(device: str, case: str, dtype: torch.dtype) -> str:
    """Outputs and gradients of every kernel, in poisoned memory, against the reference."""
    q = torch.empty(1, 1, kernels.CASES[case].width, dtype=dtype, device=device)
    reason = ops.unsupported_reason('triton', q)
    if reason:
        raise SkippedCheck(reason)
    rows = kernels.verify(device, 'triton', [case], [dtype])
    wrong = [f'{row["function"]} {row["error"]:.1e}' for row in rows if not row['correct']]
    assert not wrong, f'wrong, with their errors: {", ".join(wrong)}'
    return f'{len(rows)} functions, largest error {max(row["error"] for row in rows):.1e}'


def describe_machine(device: str) -> dict[str, str | None]:
    """Versions and device, for the record."""
    import importlib.util

    record = dict(
        stratified3d=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        device=device,
    )
    if importlib.util.find_spec('triton'):
        import triton

        record['triton'] = triton.__version__
    if device.startswith('cuda'):
        properties = torch.cuda.get_device_properties(device)
        record['device'] = f'{properties.name}, sm_{properties.major}{properties.minor}'
    return record


def write_report(path: Path, machine: dict, results: Sequence[Result]) -> None:
    """Write all results so far as JSON."""
    rows = [asdict(result) for result in results]
    path.write_text(json.dumps(dict(machine=machine, results=rows), indent=1) + '\n')


def summary_lines(results: Sequence[Result]) -> list[str]:
    """The last lines of the report: how many checks have which outcome, and all that is wrong."""
    outcomes = [result.outcome for result in results]
    counts = [f'{outcomes.count(outcome)} {outcome}' for outcome in dict.fromkeys(outcomes)]
    wrong = [f'{r.outcome.upper()} {r.check}: {r.detail}' for r in results if not r.is_good]
    return [f'{len(results)} checks: {", ".join(counts)}', *wrong]


def table_line(result: Result) -> str:
    """A row of the table, for one result."""
    detail = result.detail if result.outcome not in (FAILED, SKIPPED) else result.detail[:200]
    return f'{result.outcome:<9} {result.check:<42} {result.seconds:6.1f} s  {detail}'
