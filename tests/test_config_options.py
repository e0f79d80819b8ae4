"""Overrides of a config on the command line: mmengine's values, and spaces that stay."""

import argparse
import subprocess
import sys

import pytest
from mmengine.config.config import DictAction

from stratified3d.config_options import ConfigOptions, parse_value


@pytest.mark.parametrize(
    'text',
    [
        '3',
        '1e-3',
        'True',
        'None',
        'name',
        '"quoted"',
        '1,2',
        '[a, b]',
        '[(1, 2), [c], d]',
        '()',
        '',
    ],
)
def test_values_are_those_of_mmengine(text):
    value, expected = parse_value(text), DictAction._parse_iterable(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('/my data/run (1)/results', '/my data/run (1)/results'),
        ('[/my data/a, /my data/b]', ['/my data/a', '/my data/b']),
        ('( [ traffic cone , car ] , 2 )', (['traffic cone', 'car'], 2)),
        (' 3 ', 3),
    ],
)
def test_spaces_of_names_stay(text, value):
    assert parse_value(text) == value


def test_options_add_up_and_bad_ones_are_refused(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    given = ['--cfg-options', 'a.b=1', 'c=x=y', '--cfg-options', 'd=my data']
    assert parser.parse_args(given).cfg_options == {'a.b': 1, 'c': 'x=y', 'd': 'my data'}
    for wrong, message in (
        ('work_dir', "takes KEY=VALUE, not 'work_dir'"),
        ('a=[1,(2]', 'a=[1,(2]: Imbalanced brackets'),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(['--cfg-options', wrong])
        assert message in capsys.readouterr().err


def test_training_takes_them(root, tmp_path):
    """mmdet3d's own script reads its options by this class."""
    config = tmp_path / 'config.py'
    config.write_text("runner_type = 'None'\nseed = 0\n")
    command = [sys.executable, str(root / 'tools/train.py'), str(config), '--cfg-options', 'seed']
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert result.returncode == 2 and "takes KEY=VALUE, not 'seed'" in result.stderr
