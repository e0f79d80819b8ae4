"""The set-up script's answers that need no network; continuous integration runs the whole of it."""

import os
import subprocess

import pytest


def run_setup(root, *arguments, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(
        ['bash', str(root / 'tools/setup.sh'), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_shows_examples(root):
    result = run_setup(root, '--help')
    assert result.returncode == 0
    assert 'Examples:' in result.stdout and 'STRATIFIED3D_WHEELS=' in result.stdout


@pytest.mark.parametrize(
    'arguments, variables, message',
    [
        (['--device', 'tpu'], {}, "--device is cpu or gpu, not 'tpu'"),
        (['--devise'], {}, "unknown option '--devise'"),
        ([], dict(PYTHON='/bin/false'), "'/bin/false' is no Python 3.10 to 3.12"),
        (
            [],
            dict(STRATIFIED3D_WHEELS='/no/such/folder'),
            "STRATIFIED3D_WHEELS='/no/such/folder' is no folder",
        ),
    ],
)
def test_bad_arguments_are_named(root, arguments, variables, message):
    result = run_setup(root, *arguments, **variables)
    assert result.returncode in (1, 2) and message in result.stderr


def test_pins_are_those_of_the_readme(root):
    pins = dict(
        line.split('==')
        for line in (root / 'tools/constraints.txt').read_text().splitlines()
        if '==' in line
    )
    readme = (root / 'README.md').read_text()
    for name, version in pins.items():
        if name not in ('ruff', 'mypy'):
            assert f'| {name} | {version} |' in readme, name
