"""The set-up script's answers that need no network; continuous integration runs the whole of it."""

import os
import subprocess
import sys

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


def test_pins_are_those_of_the_page_on_installation(root):
    pins = dict(
        line.split('==')
        for line in (root / 'tools/constraints.txt').read_text().splitlines()
        if '==' in line
    )
    page = (root / 'docs/install.md').read_text()
    for name, version in pins.items():
        if name not in ('ruff', 'mypy'):
            assert f'| {name} | {version} |' in page, name


def test_sources_of_mmcv_are_joined_but_for_those_that_cannot_be(root, tmp_path):
    sources = tmp_path / 'mmcv/ops/csrc/pytorch'
    (sources / 'cpu').mkdir(parents=True)
    for name in ('pybind.cpp', 'nms.cpp', 'psamask.cpp', 'cpu/nms.cpp', 'cpu/psamask.cpp'):
        (sources / name).write_text(f'int {name[:3]};')
    command = [sys.executable, str(root / 'tools/join_mmcv_sources.py'), str(tmp_path)]
    subprocess.run(command, check=True)
    assert {path.name for path in sources.glob('*.cpp')} == {'pybind.cpp', 'joined.cpp'}
    assert {path.name for path in (sources / 'cpu').glob('*.cpp')} == {'psamask.cpp', 'joined.cpp'}
    expected = '#include "joined/nms.cpp"\n#include "joined/psamask.cpp"\n'
    assert (sources / 'joined.cpp').read_text() == expected
    assert (sources / 'cpu/joined.cpp').read_text() == '#include "joined/nms.cpp"\n'
    assert (sources / 'joined/nms.cpp').read_text() == 'int nms;'

    again = subprocess.run(command[:2] + [str(tmp_path / 'none')], capture_output=True, text=True)
    assert again.returncode and 'no pybind.cpp' in again.stderr
