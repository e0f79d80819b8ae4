"""tools/waymo_eval.py from the command line."""

import itertools
import json
import re

import pytest

from stratified3d.evaluation.waymo.files import ObjectsFile, make_messages, write_objects
from stratified3d.evaluation.waymo.messages import Submission
from stratified3d.evaluation.waymo.score import BREAKDOWNS, mean_scores, score_waymo
from stratified3d.evaluation.waymo.synthetic_boxes import synthetic_frames

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """found.bin and true.bin."""
    folder = tmp_path_factory.mktemp('objects')
    for name, boxes in zip(('found', 'true'), synthetic_frames(6, 30, 12, seed=5, reach=60)):
        write_objects(folder / f'{name}.bin', make_messages(boxes))
    return folder


@pytest.fixture
def run_waymo_eval(root, folder, tool_process, tmp_path):
    """Call with words, files of the folder among them: exit status and all that was printed."""
    number = itertools.count()

    def call(*words):
        words = [str(folder / word) if '.' in word else word for word in words]
        return tool_process(
            [str(root / 'tools/waymo_eval.py'), *words], tmp_path / f'{next(number)}.log'
        ).wait()

    return call


def test_printed_and_written_scores_are_those_of_the_arrays(run_waymo_eval, folder):
    status, printed = run_waymo_eval('found.bin', 'true.bin', '--json', 'scores.json')
    assert status == 0, printed
    scores = json.loads((folder / 'scores.json').read_text())
    assert scores == score_waymo(*synthetic_frames(6, 30, 12, seed=5, reach=60))
    assert set(scores) == {f'{name}_LEVEL_{level}' for name in BREAKDOWNS for level in (1, 2)}
    assert {
        'VEHICLE_LEVEL_1',
        'PEDESTRIAN_LEVEL_2',
        'VEHICLE_[0,30)_LEVEL_1',
        'SIGN_[30,50)_LEVEL_2',
        'CYCLIST_[50,inf)_LEVEL_2',
    } <= set(scores)
    means = re.search('^mean.*$', printed, re.MULTILINE)[0]
    assert [float(word) for word in re.findall(r'\d\.\d+', means)] == [
        round(mean_scores(scores)[f'LEVEL_{level}'][key], 4)
        for level in (1, 2)
        for key in ('AP', 'APH')
    ]


def test_submission_is_scored_and_unknown_objects_are_reported(run_waymo_eval, folder):
    boxes, _ = synthetic_frames(6, 30, 12, seed=5, reach=60)
    boxes.types = boxes.types.copy()
    boxes.types[:2] = 0
    write_objects(
        folder / 'submission.bin', make_messages(boxes), b'\x12\x00\x12\x00', Submission(task=2)
    )
    status, printed = run_waymo_eval('submission.bin', 'true.bin')
    assert status == 0, printed
    assert 'submission.bin: 2 of 180 objects' in printed
    assert 'submission.bin: does not use its 2 no-label zones' in printed


def test_bad_files_end_in_a_message_of_one_line(run_waymo_eval, folder):
    (folder / 'empty.bin').write_bytes(b'')
    (folder / 'cut.bin').write_bytes((folder / 'true.bin').read_bytes()[:-3])
    for words, message in (
        (('none.bin', 'true.bin'), 'no Objects file '),
        (('found.bin', 'empty.bin'), 'empty.bin: contains no objects'),
        (('found.bin', 'cut.bin'), 'cut.bin: damaged'),
        (('found.bin', 'true.bin', '--json', 'no/where.json'), 'no/where.json'),
    ):
        status, printed = run_waymo_eval(*words)
        assert status == 1 and 'Traceback' not in printed
        assert (
            printed.splitlines()[-1].startswith('waymo_eval.py: ')
            and message in printed.splitlines()[-1]
        )
    assert run_waymo_eval('empty.bin', 'true.bin')[0] == 0  # no prediction at all is a result


def test_help_has_examples(run_waymo_eval):
    status, printed = run_waymo_eval('--help')
    assert status == 0 and 'python tools/waymo_eval.py predictions.bin ground_truths.bin' in printed


def test_real_file_scored_against_itself_scores_one(run_waymo_eval, real_data):
    path = str(real_data / 'waymo/gt.bin')
    status, printed = run_waymo_eval(path, path)
    assert status == 0 and re.search(r'VEHICLE_\[50,inf\) +1  1\.0000  1\.0000', printed), printed


@pytest.mark.slow
def test_commands_and_code_of_the_evaluation_page(
    root, run_waymo_eval, folder, tool_process, tmp_path, monkeypatch
):
    """The blocks of docs/waymo_evaluation.md, on small files."""
    page = (root / 'docs/waymo_evaluation.md').read_text()
    score, benchmark = re.findall(r'```bash\npython (.*)\n', page)
    for name in ('found', 'true'):
        (tmp_path / dict(found='predictions.bin', true='ground_truths.bin')[name]).symlink_to(
            folder / f'{name}.bin'
        )
    monkeypatch.chdir(tmp_path)
    for line in (score, benchmark.replace('40000', '3')):
        tool, *words = line.split()
        status, printed = tool_process([str(root / tool), *words], tmp_path / 'log').wait()
        assert status == 0, printed
    work = '3 frames of 100 predictions and 40 ground truths'
    assert re.search(work + r': [\d.]+ s \([\d.]+ s of CPU time\), [\d.]+ GB', printed)
    assert len(json.loads((tmp_path / 'scores.json').read_text())) == 32
    config, script = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    known = {}
    exec(config + script, known)
    assert known['val_evaluator']['type'] == 'WaymoLevelMetric'
    assert mean_scores(score_waymo(known['found'], known['ground_truths']))['LEVEL_2'][
        'APH'
    ] == pytest.approx(1)
    assert ObjectsFile('submission.bin').submission == known['head']
