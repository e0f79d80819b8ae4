"""The commands of `stratified3d`, one module each; the scripts in tools/ call the same code.

A module has `make_parser(prog)`, which is quick to import because it brings no torch, and
`main(arguments, prog)`, which does the work and returns the exit status.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from stratified3d.commands import begin_command
from stratified3d.shipped import make_projects_importable

_RESUME = 'rerun the same command to resume'


class Command(NamedTuple):
    """A command of `stratified3d`.

    Attributes:
        module: with `make_parser` and `main`.
        summary: one line for the list of commands.
        hint: what to do after Ctrl-C.
    """

    module: str
    summary: str
    hint: str = ''


COMMANDS = {
    'detect': Command('stratified3d.cli.detect', 'objects in point files; needs no training'),
    'simulate': Command('stratified3d.cli.simulate', 'write a simulated dataset', _RESUME),
    'convert nuscenes': Command(
        'stratified3d.cli.convert.nuscenes', 'prepare nuScenes, or a simulated dataset', _RESUME
    ),
    'convert waymo': Command(
        'stratified3d.cli.convert.waymo', "convert Waymo's parquet files", _RESUME
    ),
    'convert custom': Command(
        'stratified3d.cli.convert.custom', 'convert your own points and boxes', _RESUME
    ),
    'train': Command(
        'stratified3d.cli.train',
        "train: mmdet3d's own script",
        'add --resume to resume from the last checkpoint',
    ),
    'test': Command('stratified3d.cli.test', "score a checkpoint: mmdet3d's own script"),
    'visualize': Command('stratified3d.cli.visualize', 'pictures and videos of detections'),
    'export': Command('stratified3d.cli.export', 'one compiled file that runs without OpenMMLab'),
    'doctor': Command('stratified3d.doctor.__main__', 'check the installation, and a GPU'),
    'quickstart': Command(
        'stratified3d.cli.quickstart', 'simulate, train, score and draw in one go', _RESUME
    ),
}


def run_command(name: str, prog: str, arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        name: a key of COMMANDS.
        prog: how the user calls it, for its help.
        arguments: default: those of the process.
    Returns:
        The exit status.
    """
    command = COMMANDS[name]
    begin_command(short_name(prog), command.hint)
    make_projects_importable()
    module = importlib.import_module(command.module)
    return module.main(sys.argv[1:] if arguments is None else arguments, prog)


def short_name(prog: str) -> str:
    """Return the name that starts a command's messages: 'train.py' of 'python tools/train.py'."""
    return prog.rpartition('/')[2]
