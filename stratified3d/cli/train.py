"""Train a detector: mmdet3d's own tools/train.py with all its options."""

from __future__ import annotations

import argparse

from stratified3d.commands import command_parser

EXAMPLES = """examples:
  {prog} stratified3d::quickstart/quickstart.py
  {prog} my_config.py --resume                          from the last checkpoint
  {prog} my_config.py --cfg-options train_cfg.max_epochs=10 optim_wrapper.optimizer.lr=1e-3
  {prog} my_config.py --amp                             mixed precision, on a GPU
  python -m torch.distributed.run --nproc_per_node 8 -m stratified3d.cli train my_config.py \\
      --launcher pytorch

A config of your own starts from one of ours: _base_ = 'stratified3d::own_data/own_data.py'
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """A parser for help and completion; mmdet3d's script reads the options itself."""
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'config', help='a path, or a name such as stratified3d::quickstart/quickstart.py'
    )
    parser.add_argument(
        '--work-dir', help='where logs and checkpoints go (default: work_dirs/CONFIG)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        help='resume from this checkpoint, or from the last one of --work-dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, on a GPU')
    parser.add_argument('--cfg-options', nargs='+', help='overrides of the config, key=value')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'))
    return parser


def main(arguments: list[str], prog: str) -> int:
    from stratified3d.host import run_host_tool

    return run_host_tool('train.py', make_parser(prog), arguments)
