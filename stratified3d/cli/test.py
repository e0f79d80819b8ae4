"""Score a checkpoint on a config's test set: mmdet3d's own tools/test.py with all its options."""

from __future__ import annotations

import argparse

from stratified3d.commands import command_parser

EXAMPLES = """examples:
  {prog} my_config.py work_dirs/my_config/epoch_20.pth
  {prog} stratified3d::quickstart/any_sensor.py stratified3d::quickstart/any-sensor.safetensors
  {prog} my_config.py epoch_20.pth --show-dir pictures --task lidar_det --score-thr 0.3
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """A parser for help and completion; mmdet3d's script reads the options itself."""
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'config', help='a path, or a name such as stratified3d::quickstart/any_sensor.py'
    )
    parser.add_argument('checkpoint', help='a .pth or .safetensors file, or such a name')
    parser.add_argument('--work-dir', help='where logs go (default: work_dirs/CONFIG)')
    parser.add_argument('--show-dir', help='where pictures go, below the folder of the run')
    parser.add_argument('--task', choices=('lidar_det',), help='needed with --show-dir')
    parser.add_argument('--score-thr', type=float, help='predictions below are not drawn')
    parser.add_argument('--cfg-options', nargs='+', help='overrides of the config, key=value')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'))
    return parser


def main(arguments: list[str], prog: str) -> int:
    from stratified3d.host import run_host_tool

    return run_host_tool('test.py', make_parser(prog), arguments)
