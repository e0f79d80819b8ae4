import json
import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_parts_add_up_to_the_encoder(root, tiny_set):
    sweep = next((tiny_set / 'samples/LIDAR_TOP').glob('*.bin'))
    result = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            str(root / 'tools/benchmark.py'),
            'encoder',
            str(sweep),
            '--runs',
            '2',
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    times = [float(t) for t in re.findall(r'([-\d.]+) ms', result.stdout)]
    assert len(times) == 5 and all(t > 0 for t in times)
    assert abs(sum(times[2:]) - times[1]) < 0.3
    assert '34688 points' in result.stdout


def test_benchmark_names_a_missing_point_file(root):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', str(root / 'tools/benchmark.py'), 'encoder', 'none.bin'],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode != 0 and 'none.bin' in result.stderr


@pytest.mark.slow
def test_benchmarks_write_tables_plots_and_json(root, tmp_path):
    for words, files in (
        (['complexity', '--quick'], ['complexity.json', 'complexity.md']),
        (
            ['ops', '--quick', '--runs', '1', '--only', 'stratified3d sdpa', 'SSTAttention'],
            ['ops.json', 'ops.md', 'ops.png', 'roofline.png'],
        ),
        (
            [
                'scaling',
                '--rows',
                '500',
                '1000',
                '2000',
                '--quick',
                '--runs',
                '1',
                '--only',
                'stratified3d sdpa',
            ],
            ['scaling.json', 'scaling.md', 'scaling.png'],
        ),
        (
            [
                'model',
                '--quick',
                '--runs',
                '1',
                '--only',
                'stratified pillar 0.3',
                'CenterPoint pillar 0.2',
            ],
            ['model.json', 'model.md'],
        ),
    ):
        result = subprocess.run(
            [
                sys.executable,
                '-W',
                'ignore',
                str(root / 'tools/benchmark.py'),
                *words,
                '--out',
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        (place,) = tmp_path.iterdir()
        assert all((place / name).stat().st_size > 100 for name in files)
        kept = json.loads((place / files[0]).read_text())
        assert shlex.split(kept['command'])[: len(words)] == words and kept['environment']['torch']


def test_benchmark_names_an_unknown_method(root):
    result = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            str(root / 'tools/benchmark.py'),
            'ops',
            '--quick',
            '--only',
            'DSVT',
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode != 0 and "benchmark.py: there is no method 'DSVT'" in result.stderr
