"""The command `stratified3d`: its list, help and completion, and the scripts of tools/."""

import argparse
import ast
import os
import subprocess
import sys

import pytest

from stratified3d import __version__
from stratified3d.cli import COMMANDS, short_name
from stratified3d.cli.__main__ import completion_parser, main, split_command
from stratified3d.cli.convert import waymo

TOOLS = {
    'simulate': 'simulate',
    'convert nuscenes': 'create_data',
    'convert waymo': 'waymo_convert',
    'convert custom': 'convert_custom',
    'train': 'train',
    'test': 'test',
    'visualize': 'visualize',
    'quickstart': 'quickstart',
}


def run(*words, **variables):
    return subprocess.run(
        [sys.executable, '-m', 'stratified3d.cli', *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **variables},
    )


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, 'argv', ['stratified3d', *words])
    status = main()
    return status, *capsys.readouterr()


def test_help_lists_all_commands_and_imports_nothing_large():
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'stratified3d.cli', '--help'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f'\n  {name} ' in result.stdout for name in COMMANDS)
    imported = {line.rpartition('|')[2].strip() for line in result.stderr.splitlines()}
    assert 'stratified3d.cli' in imported
    assert not imported & {'torch', 'numpy', 'numba', 'mmengine', 'mmdet3d', 'argcomplete'}


def test_version_and_mistakes(monkeypatch, capsys):
    assert call(monkeypatch, capsys, '--version') == (0, f'{__version__}\n', '')
    for words, message in (
        (['detekt'], "there is no command 'detekt'; there are detect, simulate"),
        (['convert'], 'the formats to convert are nuscenes, waymo, custom, and one has'),
        (['convert', 'kitti'], "custom, not 'kitti'"),
    ):
        status, out, err = call(monkeypatch, capsys, *words)
        assert status == 2 and not out and message in err and 'stratified3d --help' in err


def test_command_lines_are_split():
    assert split_command(['convert', 'waymo', 'a', 'b']) == ('convert waymo', ['a', 'b'])
    assert split_command(['detect', '--draw']) == ('detect', ['--draw'])


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_examples_of_itself(name):
    """Its parser is there without torch, and its examples are command lines that it takes."""
    code = (
        'import importlib, sys\n'
        f'module = importlib.import_module({COMMANDS[name].module!r})\n'
        f'print(module.make_parser("stratified3d {name}").format_help())\n'
        'assert "torch" not in sys.modules, "torch"\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert f'usage: stratified3d {name} ' in result.stdout
    examples = result.stdout.split('examples:')[1]
    assert examples.count(f'  stratified3d {name}') >= 2 and '{prog}' not in examples


@pytest.mark.parametrize(
    'line, named',
    [
        ('detect a.bin --out pictures', '--out'),
        ('detect a.bin --no-perspective', '--no-perspective'),
        ('visualize CONFIG WEIGHTS a.bin --index 0', '--index'),
        ('visualize CONFIG WEIGHTS a.bin --count 4', '--count'),
        ('visualize CONFIG WEIGHTS --dataset --index 0 --count 4', '--index or --count'),
        ('visualize CONFIG WEIGHTS --dataset --load-dim 4', '--load-dim'),
        ('visualize CONFIG WEIGHTS --dataset --show --video', '--video'),
        ('visualize CONFIG WEIGHTS --dataset --token 0', '--strata'),
        ('visualize CONFIG WEIGHTS --dataset --strata --show --token 0', 'press K'),
    ],
)
def test_options_that_would_do_nothing_are_refused(monkeypatch, capsys, line, named):
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, capsys, *line.split())
    message = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == 2 and named in message


@pytest.mark.parametrize('name, tool', TOOLS.items())
def test_tools_are_thin_callers(root, name, tool):
    source = (root / f'tools/{tool}.py').read_text()
    assert len(source.splitlines()) < 20
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (call,) = (node for node in calls if getattr(node.func, 'id', '') == 'run_command')
    assert ast.literal_eval(call.args[0]) == name
    assert ast.literal_eval(call.args[1]) == f'python tools/{tool}.py'


def test_names_of_commands_in_messages():
    assert short_name('python tools/train.py') == 'train.py'
    assert short_name('stratified3d convert waymo') == 'stratified3d convert waymo'


def complete(line):
    """What the shell would be offered after this line."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        ['bash', '-c', f'exec {sys.executable} -m stratified3d.cli 8>&{writer} 9>/dev/null'],
        pass_fds=[writer],
        env={
            **os.environ,
            '_ARGCOMPLETE': '1',
            '_ARGCOMPLETE_IFS': '\n',
            'COMP_LINE': line,
            'COMP_POINT': str(len(line)),
        },
    )
    os.close(writer)
    with os.fdopen(reader) as pipe:
        offered = pipe.read()
    assert process.wait(120) == 0
    return {word.strip() for word in offered.split('\n')}


def test_completion_of_commands_and_options():
    pytest.importorskip('argcomplete')
    assert {'simulate', 'convert', 'detect'} <= complete('stratified3d ')
    assert complete('stratified3d convert ') >= {'nuscenes', 'waymo', 'custom'}
    assert '--scenes' in complete('stratified3d simulate --sc')
    assert 'kitti' in complete('stratified3d detect a.bin --sensor k')


def test_only_the_written_command_is_imported_for_completion():
    parser = completion_parser(['detect'])
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert '--draw' in commands.choices['detect'].format_help()
    assert '--scenes' not in commands.choices['simulate'].format_help()


def test_splits_of_waymo_are_those_of_the_converter():
    from stratified3d.datasets.waymo.conversion import SPLITS, ConversionSettings

    args = waymo.make_parser('x').parse_args(['a', 'b'])
    assert tuple(SPLITS) == waymo.SPLITS
    settings = ConversionSettings()
    assert (args.database_every, args.max_sweeps) == (settings.database_every, settings.max_sweeps)
