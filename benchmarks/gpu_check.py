"""Check the attention, and the whole detector, on a GPU within minutes.

Each step runs in processes of its own and writes JSON to OUT as results come; a failure does not
stop the next step. The first five are the default, need neither mmdet3d nor spconv and take about
500 s.

  env         versions and device
  verify      every kernel against the reference, in bf16, fp32 and fp16 side by side
  tests       the tests of the kernels, at the same time as verify
  time        the kernels beside the limits of the device
  baselines   other attentions on the same tensors

  doctor      sparse convolutions and a small detector beside the CPU
  simulate    frames for the next steps
  train       20 steps of the default config in fp32
  train-amp   the same with --amp
  latency     the default detector beside CenterPoint with voxels of 0.1 m
  tokens      the quickstart's detector trained with strata tokens and without, paired seeds
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_detector import DETECTOR_LIMITS, ROOT, detector_commands

STEPS = ('env', 'verify', 'tests', 'time', 'baselines')  # by default
LIMITS = dict(env=90, verify=200, tests=200, time=130, baselines=130) | DETECTOR_LIMITS  # seconds
DTYPES = ('bfloat16', 'float32', 'float16')
PACKAGES = ('torch', 'triton', 'numpy', 'numba', 'tqdm', 'psutil', 'pytest', 'pytest-xdist')
OPTIONAL_PACKAGES = ('hypothesis', 'spconv', 'mmdet3d')
TESTS = (
    'tests/ops/test_kernels_gpu.py',
    'tests/ops/test_kernel_operators.py',
    'tests/ops/test_stratified_attention.py',
    'tests/ops/test_windows.py',
    'tests/ops/test_rotary.py',
)
BASELINES = (
    'stratified3d triton',
    'VarlenAttention',
    'SSTAttention',
    'SetAttention',
    'EqualGroupAttention',
    'LinearWindowAttention',
    'FlexAttention',
)
RUNS = 15  # per median
EXAMPLES = """examples:
  python -m benchmarks.gpu_check out
  python -m benchmarks.gpu_check out verify tests
  python -m benchmarks.gpu_check out doctor simulate train train-amp latency tokens
  SMALL=1 TRITON_INTERPRET=1 python -m benchmarks.gpu_check out    try the script itself on a CPU
"""


class Job(NamedTuple):
    """A process of a step; limit: seconds until it is killed."""

    name: str
    process: subprocess.Popen
    begin: float
    limit: float


def is_small() -> bool:
    """Whether to run only a small part of each step, to try the script itself."""
    return bool(os.environ.get('SMALL'))


def write(path: Path, content: Any) -> None:
    """Write JSON; a process that is killed meanwhile leaves the file as it was."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(content, indent=1, default=str) + '\n')
    part.replace(path)


def describe(error: Exception) -> dict[str, str]:
    """Message and end of the traceback of the exception that is handled."""
    return dict(
        error=f'{type(error).__name__}: {error}'[:600],
        traceback=traceback.format_exc()[-1500:],
    )


def check_environment(out: Path) -> bool:
    """Write env.json: versions, missing packages (None) and the device.

    Returns whether everything that is needed is there, like all steps return their success.
    """
    packages = {name: installed_version(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)}
    record: dict[str, Any] = dict(python=platform.python_version(), packages=packages)
    write(out / 'env.json', record)

    record.update(describe_device())
    try:
        import numba  # noqa: F401  (installed is not enough: it depends on numpy's version)
    except Exception as error:
        record['numba'] = describe(error)
    write(out / 'env.json', record)
    print(json.dumps(record, indent=1))
    return all(packages[name] for name in PACKAGES) and 'numba' not in record


def installed_version(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_device() -> dict[str, Any]:
    """CUDA version of torch; name, compute capability and memory of the GPU if there is one."""
    import torch

    record: dict[str, Any] = dict(cuda=torch.version.cuda)
    if torch.cuda.is_available():
        record['device'] = torch.cuda.get_device_name()
        record['capability'] = torch.cuda.get_device_capability()
        record['memory_gib'] = torch.cuda.get_device_properties(0).total_memory / 2**30
    return record


def verify_dtype(out: Path, dtype: str) -> bool:
    """Write verify-<dtype>.json: every function in every case, wrong or not."""
    import torch

    from stratified3d.doctor import kernels as verification
    from stratified3d.testing import SHAPE_CASES

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    cases = list(SHAPE_CASES)[:2] if is_small() else list(verification.CASES)
    rows: list[dict] = []
    for case in cases:
        begin = time.perf_counter()
        try:
            rows += verification.verify(device, 'triton', [case], [getattr(torch, dtype)])
        except Exception as error:
            rows.append(dict(case=case, dtype=dtype, correct=False, **describe(error)))
        write(out / f'verify-{dtype}.json', rows)
        print(f'{dtype} {case}: {time.perf_counter() - begin:.1f} s', flush=True)
    print(summarize_verification(rows))
    return all(row['correct'] for row in rows)


def summarize_verification(rows: list[dict]) -> str:
    wrong = [row for row in rows if not row['correct']]
    largest = max((row['error'] for row in rows if row['correct']), default=None)
    text = f'{len(rows) - len(wrong)} of {len(rows)} correct, largest error {largest}'
    return '\n'.join([text, *(f'WRONG: {json.dumps(row)[:500]}' for row in wrong)])


def time_kernels(out: Path) -> bool:
    """Write time.json: ceilings of the device, and the times of every case."""
    import torch

    from benchmarks.attention import kernels

    if not torch.cuda.is_available():
        write(out / 'time.json', dict(skipped='there is no CUDA device'))
        print('skipped: there is no CUDA device')
        return True
    ceilings = kernels.measure_ceilings(RUNS)
    record: dict[str, Any] = dict(
        device=torch.cuda.get_device_name(), ceilings=ceilings, times=[], failures=[]
    )
    write(out / 'time.json', record)
    rows = (30_000, 200_000, 100_000, 1_000_000)
    for case in kernels.list_cases('cuda', rows, sides=(1, 4, 8, 32, 64)):
        try:
            record['times'] += kernels.time_case(case, ceilings, RUNS)
        except Exception as error:
            record['failures'].append(dict(case=case.name, **describe(error)))
        write(out / 'time.json', record)
        print(case.name, flush=True)
    return not record['failures']


def time_baselines(out: Path) -> bool:
    """Write baselines.json and .md: baselines in all variants on the same tensors as ours."""
    import torch

    from benchmarks.attention import ops
    from benchmarks.default_config import HEADS, STRATA, WIDTH
    from benchmarks.measure import ceilings
    from benchmarks.point_clouds import batches_for_ops
    from benchmarks.report import compact

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    record: dict[str, Any] = dict(heads=HEADS, width=WIDTH, strata=STRATA)
    record.update(ceilings=ceilings(device, dtype), limits={}, rows=[], failures=[])
    batches = batches_for_ops(None, quick=is_small())
    for batch in batches:
        record['limits'][batch.name] = ops.lower_limits(batch, device, dtype, record['ceilings'])
    # in order of worth: what is compiled for every point cloud anew, FlexAttention, comes last
    for name in ('stratified3d sdpa', 'SSTAttention') if is_small() else BASELINES:
        for batch in batches:
            for row in _time_baseline(name, batch, device, dtype):
                record['failures' if 'traceback' in row else 'rows'].append(row)
                write(out / 'baselines.json', record)
                (out / 'baselines.md').write_text(compact(ops.render(record)))
            print(f'{batch.name}: {name}', flush=True)
    print(ops.render(record))
    return not record['failures']


def _time_baseline(name: str, batch: Any, device: Any, dtype: Any) -> Iterator[dict]:
    """Row of results, or description of a failure, of each variant of a method."""
    from benchmarks.attention.methods import methods
    from benchmarks.attention.ops import time_method

    runs = 1 if is_small() else RUNS
    for method in methods(device, dtype, batch.window_shape, [name]):
        try:
            yield time_method(method, batch, device, dtype, runs, limit=1.0)
        except Exception as error:
            variant = dict(name=name, settings=method.settings, point_cloud=batch.name)
            yield dict(variant, **describe(error))


def test_command(out: Path) -> list[str]:
    """pytest on the tests that a GPU machine without mmdet3d can run.

    tests/conftest.py needs mmdet3d; files that cannot be imported do not stop the others.
    """
    files = TESTS[-1:] if is_small() else TESTS
    return [
        *(sys.executable, '-m', 'pytest', '-q', '-ra', '--noconftest', '-p', 'no:cacheprovider'),
        *('-p', 'benchmarks.gpu_check_plugin', '--record', str(out / 'tests.json')),
        *('--continue-on-collection-errors', '-n', '2' if is_small() else '6', *files),
    ]


def commands_of(step: str, out: Path) -> dict[str, list[str]]:
    """Command of each process of a step, by the name of its log."""
    worker = [sys.executable, '-m', 'benchmarks.gpu_check', str(out), '--worker']
    if step == 'tests':
        return {'tests': test_command(out)}
    if step == 'verify':
        dtypes = DTYPES[1:2] if is_small() else DTYPES
        return {f'verify-{dtype}': [*worker, 'verify', dtype] for dtype in dtypes}
    if step in DETECTOR_LIMITS:
        return detector_commands(step, out, is_small())
    return {step: [*worker, step]}


def start(step: str, out: Path) -> list[Job]:
    """Start all processes of a step."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED='1')
    if step in ('verify', 'tests'):  # ten processes; without a workspace cuBLAS warns in every test
        environment |= dict(OMP_NUM_THREADS='2', CUBLAS_WORKSPACE_CONFIG=':4096:8')
    if os.environ.get('PYTHONPATH'):
        environment['PYTHONPATH'] += os.pathsep + os.environ['PYTHONPATH']
    jobs = []
    for name, command in commands_of(step, out).items():
        with (out / f'{name}.log').open('w') as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        jobs.append(Job(name, process, time.perf_counter(), LIMITS[step]))
    return jobs


def finish(jobs: list[Job], out: Path) -> dict[str, dict[str, Any]]:
    """Wait for processes, kill those over their limit, and print the end of each log."""
    results = {}
    for job in jobs:
        status = _wait(job)
        seconds = round(time.perf_counter() - job.begin, 1)
        results[job.name] = dict(status=status, seconds=seconds)
        log = (out / f'{job.name}.log').read_text(errors='replace')
        print(f'== {job.name}: status {status}, {seconds} s\n{log[-1800:]}', flush=True)
    return results


def _wait(job: Job) -> int | str:
    """Exit status, or that the process was killed."""
    spent = time.perf_counter() - job.begin
    try:
        return job.process.wait(max(0, job.limit - spent))
    except subprocess.TimeoutExpired:
        os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
        return f'killed after {job.limit:g} s'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder of the results')
    parser.add_argument(
        'steps', metavar='STEP', nargs='*', help='of those above (default: the first five)'
    )
    parser.add_argument('--worker', nargs='+', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    for step in args.steps:
        if step not in LIMITS:
            parser.error(f'there is no step {step!r}; there are {", ".join(LIMITS)}')
    return args


def run_worker(out: Path, step: str, *arguments: str) -> bool:
    """Run a step in this process; returns whether it succeeded."""
    if step == 'verify':
        return verify_dtype(out, *arguments)
    workers = dict(env=check_environment, time=time_kernels, baselines=time_baselines)
    return workers[step](out)


def main() -> int:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker:
        return 0 if run_worker(args.out, *args.worker) else 1

    steps = [step for step in LIMITS if step in (args.steps or STEPS)]
    failed = run_steps(steps, args.out)
    if failed:
        print(f'failed: {", ".join(failed)}')
        return 1
    print('all steps succeeded')
    return 0


def run_steps(steps: list[str], out: Path) -> list[str]:
    """Run the steps one after the other, 'verify' and 'tests' together; returns what failed."""
    summary: dict[str, Any] = {}
    while steps:
        together = [steps.pop(0)]
        if together == ['verify'] and 'tests' in steps:
            together.append(steps.pop(0))

        jobs = [job for step in together for job in start(step, out)]
        summary.update(finish(jobs, out))
        write(out / 'summary.json', summary)
    return [name for name, result in summary.items() if result['status'] != 0]


if __name__ == '__main__':
    sys.exit(main())
