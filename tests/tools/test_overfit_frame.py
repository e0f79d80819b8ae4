import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def overfit(root, info, out, *arguments):
    return subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            str(root / 'tools/overfit_frame.py'),
            str(info),
            '--out',
            str(out),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(result, out):
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((out / 'detections.json').read_text())
    assert 'within 2 m' in result.stdout
    assert sum(hit for hit, _ in summary['classes'].values()) <= sum(
        count for _, count in summary['classes'].values()
    )
    assert (out / 'bev.png').stat().st_size > 20000 and (out / 'checkpoint.pth').is_file()
    return summary


@pytest.mark.slow
def test_overfit_a_simulated_frame(root, prepared_set, tmp_path):
    result = overfit(
        root, prepared_set / 'nuscenes_infos_val.pkl', tmp_path, '--iterations', '3', '--index', '1'
    )
    summary = check(result, tmp_path)
    assert len(summary['boxes']) == len(summary['scores']) == len(summary['names'])


@pytest.mark.slow
def test_overfit_a_real_frame(root, real_data, tmp_path):
    info = next((real_data / 'nuscenes_keyframe').glob('*.pkl'))
    summary = check(overfit(root, info, tmp_path, '--iterations', '2'), tmp_path)
    assert sum(count for _, count in summary['classes'].values()) == 26


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['none.pkl'], 'overfit_frame.py: there is no info file none.pkl'),
        (['none.pkl', '--iterations', '0'], '--iterations is at least 1, not 0'),
        (['tiny', '--index', '99'], 'no frame 99'),
        (['tiny', '--config', 'none.py'], 'there is no config none.py'),
        (['tiny', '--min-points', '100000'], 'has no box in range with 100000 or more points'),
    ],
)
def test_bad_arguments_are_named(root, prepared_set, tmp_path, tool_process, arguments, message):
    info = prepared_set / 'nuscenes_infos_train.pkl' if arguments[0] == 'tiny' else arguments[0]
    words = [str(root / 'tools/overfit_frame.py'), str(info), '--out', str(tmp_path)]
    status, output = tool_process([*words, *arguments[1:]], tmp_path / 'output.txt').wait()
    assert status != 0 and message in output and 'Traceback' not in output
