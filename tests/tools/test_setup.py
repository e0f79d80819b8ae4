"""The set-up script's answers that need no network; continuous integration runs the whole of it."""

import os
import shutil
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
        (['--device'], {}, '--device needs a value'),
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


# answers as a pip whose wheel folder has an mmcv of another torch; "$FAKE" is a folder of its own
FAKE_PYTHON = r"""#!/usr/bin/env bash
echo "$*" >> "$FAKE/calls"
case "$*" in
  *'import mmcv, mmcv.ops'*|*'import _ext'*) exit 1 ;;
  *' download '*'--no-binary'*) tar -czf .venv/mmcv/mmcv-2.1.0.tar.gz -C "$FAKE" mmcv ;;
  *' download '*) mkdir .venv/mmcv && touch .venv/mmcv/mmcv-2.1.0-prebuilt.whl ;;
  *' wheel '*) touch .venv/wheels/mmcv-2.1.0-compiled.whl ;;
esac
"""


def test_a_wheel_that_does_not_fit_is_not_installed_after_all(root, tmp_path):
    for name in ('tools/setup.sh', 'tools/build_mmcv.sh', 'tools/constraints.txt'):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(root / name, target)
    for name in ('tools/join_mmcv_sources.py', 'pyproject.toml'):
        (tmp_path / name).touch()
    fake = tmp_path / 'fake'
    (fake / 'mmcv').mkdir(parents=True)
    for path, text in (
        (tmp_path / '.venv/bin/python', FAKE_PYTHON),
        (fake / 'dpkg-query', '#!/bin/sh\necho install ok installed'),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    old = tmp_path / '.venv/wheels/mmcv-2.1.0-old.whl'
    old.parent.mkdir()
    old.touch()

    result = run_setup(
        tmp_path,
        '--device',
        'gpu',
        PYTHON=sys.executable,
        PATH=f'{fake}:{os.environ["PATH"]}',
        FAKE=str(fake),
        STRATIFIED3D_WHEELS=str(fake),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'built for another torch' in result.stdout
    calls = (fake / 'calls').read_text().splitlines()
    assert calls.index('-m pip uninstall --yes mmcv') < len(calls) - 2
    (install,) = (line for line in calls if ' install ' in line and 'mmcv' in line)
    assert install.endswith(' .venv/wheels/mmcv-2.1.0-compiled.whl')
