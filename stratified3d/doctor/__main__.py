"""Check the installation, and with --gpu everything that runs on a GPU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stratified3d.commands import begin_command, command_parser

PROG = 'python -m stratified3d.doctor'

EXAMPLES = """examples:
  {prog}                          the installation, in seconds
  {prog} --gpu                    everything that runs on the GPU, in minutes
  {prog} --gpu --json gpu.json    the results in a file, too
  {prog} --gpu --ops-only         with torch, triton and numpy alone
  {prog} --gpu --only bfloat16    part of them
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        '--gpu',
        action='store_true',
        help='compare kernels, sparse convolutions and the detector with the CPU',
    )
    parser.add_argument(
        '--ops-only', action='store_true', help='with --gpu: without spconv and mmdet3d'
    )
    parser.add_argument(
        '--only', metavar='TEXT', help='with --gpu: only checks that have this in their names'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='with --gpu: where results go')
    parser.add_argument(
        '--device', default='cuda', help='with --gpu: cuda (default), cuda:1, or cpu to try it'
    )
    parser.add_argument('--worker', nargs='+', help=argparse.SUPPRESS)
    return parser


def parse_args(arguments: list[str] | None = None, prog: str = PROG) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(prog)
    args = parser.parse_args(arguments)
    if not args.gpu and (args.ops_only or args.only or args.json or args.device != 'cuda'):
        parser.error('--ops-only, --only, --json and --device belong to --gpu')
    return args


def check_installation() -> int:
    """Print versions, devices and backends; 1 if anything is wrong."""
    import torch

    from stratified3d.doctor import environment

    environment.show_versions()
    devices = environment.show_devices()
    environment.show_backends(devices)

    failed = environment.check_imports()
    if not failed:
        try:
            with torch.no_grad():
                checks = [environment.check_results(device) for device in devices]
                failed = [line for lines in checks for line in lines]
        except ValueError as error:  # no backend can run
            failed = [str(error)]

    for line in failed:
        print(f'FAILED {line}')
    if failed:
        print('something is wrong: bash tools/setup.sh --fresh builds the environment anew')
    else:
        print('all imports work, attention and sparse convolution give right results')
    return bool(failed)


def check_gpu(args: argparse.Namespace) -> int:
    """Run all checks of the device, each apart, and print a table; 1 if one is not passed."""
    import torch

    from stratified3d.doctor import gpu
    from stratified3d.doctor.checks import run_apart

    if args.device.startswith('cuda') and not torch.cuda.is_available():
        print(
            f'there is no CUDA device (torch {torch.__version__}): `nvidia-smi` shows whether the '
            'driver works, and `python -m stratified3d.doctor` which torch is installed'
        )
        return 1
    machine = gpu.describe_machine(args.device)
    print(', '.join(f'{name} {value}' for name, value in machine.items() if value))
    checks = [check for check in gpu.list_checks(args.ops_only) if (args.only or '') in check.name]
    if not checks:
        print(f'no check has {args.only!r} in its name')
        return 1
    command = [sys.executable, '-m', 'stratified3d.doctor', '--gpu', '--device', args.device]
    results = []
    for result in run_apart(checks, command, gpu.LIMIT):
        results.append(result)
        print(gpu.table_line(result), flush=True)
        if args.json:
            gpu.write_report(args.json, machine, results)
    print('\n'.join(gpu.summary_lines(results)))
    return not all(result.is_good for result in results)


def run_worker(args: argparse.Namespace) -> int:
    """Run the checks of these names in this process, see `run_in_process`."""
    import torch

    from stratified3d.doctor import gpu
    from stratified3d.doctor.checks import run_in_process

    if args.device.startswith('cuda'):
        torch.cuda.set_device(args.device)  # of streams and graphs
    path, *names = args.worker
    checks = {check.name: check for check in gpu.list_checks(ops_only=False)}
    return run_in_process([checks[name] for name in names], args.device, Path(path))


def main(arguments: list[str] | None = None, prog: str = PROG) -> int:
    args = parse_args(arguments, prog)
    if args.worker:
        return run_worker(args)
    return check_gpu(args) if args.gpu else check_installation()


if __name__ == '__main__':
    if '--worker' not in sys.argv:
        begin_command('doctor')
    sys.exit(main())
