"""Which boxes of two lists are equal, and which reasons count for those that are not."""

from types import SimpleNamespace

import numpy as np
import pytest

from stratified3d.cli.export import main
from stratified3d.deploy.compare import _no_nms, compare, render, vary_size
from stratified3d.deploy.package import PackagedDetector
from stratified3d.detections import Detections

HEAD = SimpleNamespace(
    class_names=[['car', 'truck'], ['pedestrian']],
    nms=dict(type='rotated', iou=0.1),
    score_threshold=0.02,
    post_max_size=3,
    max_num=500,
)


def boxes(*rows, name='car'):
    """Boxes of 2 x 2 m side by side, from pairs of x and score."""
    places = np.array([[x, 0, 0, 2, 2, 2, 0, 0, 0] for x, _ in rows], np.float32)
    scores = np.array([score for _, score in rows], np.float32)
    return Detections(places.reshape(-1, 9), scores, [name] * len(rows))


def reasons(found, expected, candidates=None, head=HEAD):
    difference = compare(found, expected, candidates or expected, head)
    assert difference.num_unexplained == sum(x.endswith('no reason') for x in difference.reasons)
    return [x.split(': ')[1] for x in difference.reasons]


def test_order_and_full_turns_do_not_matter():
    expected = boxes((0, 0.9), (10, 0.5))
    found = boxes((10.0001, 0.5), (0, 0.90002))
    found.boxes[:, 6] += 2 * np.pi
    difference = compare(found, expected, expected, HEAD)
    assert difference.num_boxes == 4 and not difference.reasons
    assert difference.box_gap == pytest.approx(1e-4, rel=0.1)
    assert difference.score_gap == pytest.approx(2e-5, rel=0.1)


def test_box_that_is_no_candidate_has_no_reason():
    assert reasons(boxes((0.5, 0.9)), boxes((0, 0.9))) == ['no reason'] * 2
    assert reasons(boxes((0, 0.9), name='truck'), boxes((0, 0.9))) == ['no reason'] * 2
    assert reasons(boxes(), boxes((0, 0.9))) == ['no reason']
    # a box twice in one list has one partner only
    assert reasons(boxes((0, 0.9), (0, 0.9)), boxes((0, 0.9))) != []


def test_ties_and_what_follows_from_them_are_explained():
    candidates = boxes((0, 0.9), (1, 0.9), (2.5, 0.5))
    found, expected = boxes((0, 0.9), (2.5, 0.5)), boxes((1, 0.9))
    tie = 'it ties with a box that overlaps it'
    assert reasons(found, expected, candidates) == [
        tie,
        'it gives way to a better box that the other list has',
        tie,
    ]
    # the same choice without a tie is a fault
    candidates.scores[1] = expected.scores[0] = 0.8
    assert 'no reason' in reasons(found, expected, candidates)


def test_limits_of_the_head_are_reasons():
    assert reasons(boxes((0, 0.02)), boxes()) == ['no reason']  # not even a candidate
    low = boxes((0, 0.02))
    assert reasons(low, boxes(), low) == ['its score is at the threshold']
    full, other = boxes((0, 0.9), (9, 0.8), (18, 0.5)), boxes((0, 0.9), (9, 0.8), (27, 0.5))
    last = 'it would be the last of 3 boxes of its task'
    assert reasons(full, other, boxes((0, 0.9), (9, 0.8), (18, 0.5), (27, 0.5))) == [last] * 2
    # an overlap of 2 x 2 m boxes 18 / 11 m apart is 0.1
    pair = boxes((0, 0.9), (18 / 11, 0.5))
    at_limit = 'its overlap with a better box is at the limit of NMS'
    assert reasons(pair, boxes((0, 0.9)), pair) == [at_limit]
    circle = SimpleNamespace(**vars(HEAD) | dict(nms=dict(type='circle', radius=[18 / 11, 1])))
    assert reasons(pair, boxes((0, 0.9)), pair, circle) == [at_limit]


def test_frames_without_boxes_are_equal():
    difference = compare(boxes(), boxes(), boxes(), HEAD)
    assert (difference.num_boxes, difference.box_gap, difference.reasons) == (0, 0, [])
    assert '1 frames of 0 to 0 points, 0 boxes' in render([difference])
    assert render([])


def test_sizes_run_from_none_to_all_and_repeat():
    points = np.random.default_rng(0).normal(size=(1000, 4))
    parts = [vary_size(points, i, 5) for i in range(5)]
    assert [len(part) for part in parts] == [0, 62, 250, 562, 1000]
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, vary_size(points, i, 5))
    azimuth = np.sort(np.arctan2(parts[3][:, 1], parts[3][:, 0]))
    gaps = np.diff(azimuth, append=azimuth[0] + 2 * np.pi)
    assert gaps.max() > 1  # a sector: the others are behind one gap
    assert len(vary_size(points[:0], 1, 2)) == 0 and len(vary_size(points, 0, 1)) == 0


def test_head_without_nms_returns_all_candidates(detector, frame, monkeypatch):
    from stratified3d.apis import detect

    monkeypatch.setattr(detector, 'bev_dtype', 'fp32')
    points = frame(300)
    expected = detect(detector, points)
    with _no_nms(detector.head):
        candidates = detect(detector, points)
    assert len(candidates.names) > len(expected.names)
    assert not compare(expected, expected, candidates, detector.head).reasons
    again = detect(detector, points)
    np.testing.assert_array_equal(again.boxes, expected.boxes)


@pytest.fixture
def export(small_detector, detector, frame, tmp_path, monkeypatch):
    """Runs the command with a program that is not compiled and that may be changed first."""
    import torch

    from stratified3d.deploy.export import build_program

    program, info = build_program(detector, torch.float32)
    monkeypatch.setattr('stratified3d.deploy.export.export_detector', lambda *_, **__: info)
    monkeypatch.setattr('stratified3d.deploy.load', lambda _: PackagedDetector(program, info))
    (tmp_path / 'frames').mkdir()
    for i in range(2):
        frame(400, seed=i)[:, :4].tofile(tmp_path / f'frames/{i}.bin')

    def run(*options, change=lambda program: None):
        change(program)
        model = [str(small_detector / name) for name in ('config.py', 'model.pth')]
        return main([*model, 'a.pt2', '--device', 'cpu', *options], 'stratified3d export')

    run.info = info
    return run, str(tmp_path / 'frames')


def test_command_compares_frames_of_a_folder(export, capsys):
    run, folder = export
    check = ('--bev-dtype', 'fp32', '--check', '3', '--check-folder', folder)
    assert run(*check) == 0
    assert '3 frames of 0 to 400 points' in capsys.readouterr().out

    def break_it(program):
        program.encoder.norm.bias += 0.5

    assert run(*check, change=break_it) == 1
    assert 'only found: no reason' in capsys.readouterr().out


@pytest.mark.parametrize('limits', [dict(capacity=250), dict(capacity=400, num_points=250)])
@pytest.mark.parametrize('overflow', ['drop', 'error'])
def test_frames_that_a_package_has_no_room_for_are_not_compared(export, capsys, limits, overflow):
    run, folder = export
    run.info.update(limits, overflow=overflow)
    check = ('--bev-dtype', 'fp32', '--check', '3', '--check-folder', folder)
    assert run(*check) == 0
    said = capsys.readouterr().out
    assert '1 of 3 frames are over' in said and '2 frames of 0 to 100 points' in said
    run.info['capacity'] = -1
    assert run(*check) == 1


@pytest.mark.parametrize(
    'options, key',
    [
        (['--check', '0', '--bev-dtype', 'fp32'], 'at least 1, not 0'),
        (['--check', '3'], '--bev-dtype fp32'),
        (['--check-folder', '.'], 'without --check'),
        (['--check', '3', '--bev-dtype', 'fp32', '--check-folder', 'none'], 'no folder none'),
    ],
)
def test_checks_that_cannot_be_made_are_refused_before_the_work(export, options, key):
    run, _ = export
    with pytest.raises(SystemExit, match=key):
        run(*options)
