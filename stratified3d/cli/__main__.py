"""`stratified3d COMMAND`: everything that the package does, from the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from stratified3d import __version__
from stratified3d.cli import COMMANDS, run_command

PROG = 'stratified3d'
EXAMPLES = """examples:
  stratified3d detect sweep.pcd.bin --draw           objects in a file, with the weights we ship
  stratified3d quickstart                            simulate, train, score, draw: under an hour
  stratified3d simulate data/simulated               a dataset in nuScenes' format
  stratified3d convert nuscenes data/simulated       its info files and ground-truth database
  stratified3d train stratified3d::quickstart/quickstart.py
  stratified3d detect --help                         options and examples of one command

completion in bash (zsh and fish: https://kislyuk.github.io/argcomplete):
  eval "$(register-python-argcomplete stratified3d)"
"""
FORMATS = tuple(name.split()[1] for name in COMMANDS if name.startswith('convert '))


def help_text() -> str:
    """Return what `stratified3d --help` prints."""
    width = max(map(len, COMMANDS))
    rows = [f'  {name:<{width}}  {command.summary}' for name, command in COMMANDS.items()]
    return '\n'.join(
        [
            f'usage: {PROG} [--version] COMMAND [OPTION ...]',
            '',
            'LiDAR detection with stratified attention, a plugin for mmdet3d.',
            '',
            'commands:',
            *rows,
            '',
            EXAMPLES,
        ]
    )


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """Split a command line into the command's name and its arguments.

    Raises:
        ValueError: there is no such command.
    """
    name = words[0]
    if name == 'convert':
        if len(words) < 2 or words[1] not in FORMATS:
            given = f"not '{words[1]}'" if len(words) > 1 else 'and one has to be named'
            raise ValueError(f'the formats to convert are {", ".join(FORMATS)}, {given}')
        return f'{name} {words[1]}', words[2:]
    if name not in COMMANDS:
        raise ValueError(f"there is no command '{name}'; there are {', '.join(COMMANDS)}")
    return name, words[1:]


def main() -> int:
    """Run the command that the command line names; returns its exit status."""
    words = sys.argv[1:]
    if '_ARGCOMPLETE' in os.environ:
        complete()
    if not words or words[0] in ('-h', '--help', 'help') or words == ['convert', '--help']:
        print(help_text(), end='')
        return 0
    if words[0] == '--version':
        print(__version__)
        return 0
    try:
        name, arguments = split_command(words)
    except ValueError as error:
        print(f'{PROG}: {error}; see {PROG} --help', file=sys.stderr)
        return 2
    return run_command(name, f'{PROG} {name}', arguments)


def complete() -> None:
    """Answer the shell, which asks what may come next on the command line, and end."""
    import argcomplete

    line = os.environ.get('COMP_LINE', '')[: int(os.environ.get('COMP_POINT', '0'))]
    argcomplete.autocomplete(completion_parser(line.split()[1:]))


def completion_parser(words: list[str]) -> argparse.ArgumentParser:
    """Return a parser of all commands; only the one that is being written has its options."""
    parser = argparse.ArgumentParser(prog=PROG)
    parser.add_argument('--version', action='store_true')
    commands = parser.add_subparsers()
    formats = commands.add_parser('convert').add_subparsers()
    for name, command in COMMANDS.items():
        first, _, last = name.partition(' ')
        options = []
        if words[: len(name.split())] == name.split():
            module = importlib.import_module(command.module)
            options = [module.make_parser(f'{PROG} {name}')]
        add = formats.add_parser if last else commands.add_parser
        add(last or first, parents=options, add_help=not options)
    return parser


if __name__ == '__main__':
    sys.exit(main())
