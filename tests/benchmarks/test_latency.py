"""Whole detectors side by side: what is checked before they are timed, and what the time is made
of."""

import pytest
import torch

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks.detectors import builders as detectors
from benchmarks.detectors import latency as model
from benchmarks.detectors import synthetic as planted
from benchmarks.detectors.builders import (
    ONE_THREAD,
    PILLAR,
    RULEBOOK,
    SPCONV,
    VOXEL,
    Detector,
)
from benchmarks.point_clouds import BenchmarkFrame, frames_for_model, simulated
from stratified3d.models.heads import center as center_head

CPU, FP32, REACH = torch.device('cpu'), torch.float32, 9.6
OURS = 'stratified pillar 0.3'


@pytest.fixture(scope='module')
def frame():
    return BenchmarkFrame('simulated', simulated(1))


@pytest.fixture(scope='module')
def field():
    return {entry.name: entry for entry in detectors.entries(REACH)}


@pytest.fixture(scope='module')
def objects():
    return planted.SyntheticObjects(REACH)


@pytest.fixture(scope='module')
def ours(frame, field, objects):
    """A detector that passed, and what its head made."""
    (detector,), _ = model.prepare(field[OURS], frame.points, objects, CPU, FP32)
    detector.detect(frame.points)
    return detector, {name: [m.clone() for m in made] for name, made in detector.made.items()}


@pytest.fixture(scope='module')
def result(frame):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, 'QUICK_REACH', REACH)
        patch.setattr(model, 'TUNING_ROUNDS', 1)
        return model.run([frame], CPU, FP32, 2, [OURS, PILLAR, VOXEL], True)


def test_everyone_has_the_same_head_and_the_map_that_its_config_says():
    widths, classes, cells = set(), set(), {}
    for entry in detectors.entries():
        built = entry.build()
        head = built.head if entry.ours else built.pts_bbox_head
        branches = [
            branch[0].conv
            for task in head.task_heads
            for branch in task.children()
            if isinstance(branch, torch.nn.Sequential)
        ]
        widths |= {
            head.shared_conv.conv.out_channels,
            *(c for b in branches for c in (b.in_channels, b.out_channels)),
        }
        classes.add(tuple(map(tuple, head.class_names)))
        coder = head.bbox_coder
        cell, origin = (
            (head.cell[0], head.corner[0])
            if entry.ours
            else (coder.out_size_factor * coder.voxel_size[0], coder.pc_range[0])
        )
        assert (cell, origin) == pytest.approx((entry.cell, entry.origin))
        cells[entry.name] = round(entry.cell, 6), round(-entry.origin, 6)
    assert widths == {64} and len(classes) == 1
    assert cells == {
        OURS: (0.6, 54),
        'stratified voxel 0.3': (0.6, 54),
        PILLAR: (0.8, 51.2),
        f'{PILLAR}, map of 0.6 m': (0.6, 54),
        VOXEL: (0.8, 51.2),
        'CenterPoint voxel 0.075': (0.6, 54),
    }


def test_rows(result):
    assert [row['name'] for row in result['rows']] == [OURS, PILLAR, VOXEL]
    for row in result['rows']:
        assert row['cells'] == (round(2 * REACH / row['cell']),) * 2 and row['voxels'] > 300
        assert 4e6 < row['parameters'] < 2e7
        assert all(row['ms'][part].median > 0 for part in model.PARTS)
        assert set(row['ratio']) == {PILLAR, VOXEL} and len(row['total_ms_of_each_round']) == 2
        fastest = min(
            tried['total_ms'].median
            for tried in result['tried']
            if tried['name'] == row['name'] and 'refused' not in tried
        )
        (chosen,) = (
            t
            for t in result['tried']
            if (t['name'], t['settings']) == (row['name'], row['settings'])
        )
        assert chosen['total_ms'].median == fastest
    assert result['rows'][1]['ratio'][PILLAR].median == 1
    settings = [row['settings'] for row in result['tried'] if row['name'] == VOXEL]
    assert settings[0] == dict(layout='contiguous', convolution=SPCONV) and len(settings) == 5
    right = [
        row['settings']['convolution']
        for row in result['tried']
        if row['name'] == VOXEL and 'total_ms' in row
    ]
    assert right.count(ONE_THREAD) == right.count(RULEBOOK) == 2


def test_tables(result):
    text = model.render(result)
    assert (
        text.index('voxelize')
        < text.index(f'| {OURS}')
        < text.index('Total over')
        < text.index('every setting')
    )
    # parts; ratios, a column and a row; who it is; every setting
    assert text.count(f'| {VOXEL} ') == 4 + 5
    refused = dict(result['tried'][0], refused='wrong, so not timed: the head is off by 1.0e+00')
    del refused['total_ms']
    text = model.render(
        dict(result, rows=result['rows'][1:], tried=[refused, *result['tried'][1:]])
    )
    assert text.count(f'| {OURS} ') == 2 and text.count(refused['refused']) == 1


def test_the_parts_make_up_the_pass(ours, frame):
    detector, _ = ours
    spent = model.time_pass(detector, frame.points)
    assert list(spent) == [*model.PARTS, 'total'] and min(spent.values()) > 0
    assert sum(spent[part] for part in model.PARTS) == pytest.approx(spent['total'], rel=0.02)


def test_a_wrong_detector_is_refused(ours, frame, monkeypatch):
    detector, truth = ours
    assert model.check(detector, frame.points, truth) is None
    attention = detector.model.encoder.stages[0].blocks[0].mixer
    attend = attention.attend
    for wrong in (1.02, torch.nan):
        monkeypatch.setattr(attention, 'attend', lambda *args, wrong=wrong: attend(*args) * wrong)
        refused = model.check(detector, frame.points, truth)
        assert refused.startswith("wrong, so not timed: the head's heatmaps are off by")
    assert refused.endswith(' nan')
    monkeypatch.setattr(
        detector, 'detect', lambda points: (_ for _ in ()).throw(RuntimeError('no CUDA here\nmore'))
    )
    assert model.check(detector, frame.points, truth) == 'does not run: RuntimeError: no CUDA here'


def test_wrong_boxes_are_refused_in_every_dtype(ours, frame, monkeypatch):
    detector, truth = ours
    right = center_head.run_at
    monkeypatch.setattr(
        center_head,
        'run_at',
        lambda branches, maps, peaks: right(
            branches, maps, peaks._replace(x=(peaks.x + 1).clamp(max=maps.shape[3] - 1))
        ),
    )
    for tolerance in model.TOLERANCES.values():
        monkeypatch.setitem(model.TOLERANCES, FP32, tolerance)
        assert model.check(detector, frame.points, truth).startswith(
            "wrong, so not timed: the head's boxes are off by"
        )


def test_wrong_suppression_and_decoding_are_noticed(frame, field, objects, monkeypatch):
    entry = field[OURS]
    detector = Detector(entry, entry.build(), {}, objects, CPU, FP32)
    assert objects.missed(detector.detect(frame.points)) is None
    with monkeypatch.context() as patch:
        patch.setattr(
            center_head, 'rotated_nms', lambda boxes, scores, *_: torch.arange(len(scores))
        )
        assert (
            objects.missed(detector.detect(frame.points))
            == '270 boxes are found where 54 are planted'
        )
    detector.model.head.cell = [0.62, 0.62]
    assert 'a planted box is found' in objects.missed(detector.detect(frame.points))


def test_planted_objects_need_room(objects):
    maps = ([dict(heatmap=torch.zeros(1, 1, 8, 8))],)
    with pytest.raises(ValueError, match='objects do not fit on a map of 8 x 8 cells of 0.6 m'):
        objects.maps(maps, 0.6, -2.4)


def test_frames(tiny_set):
    sweep = next((tiny_set / 'samples/LIDAR_TOP').glob('*.bin'))
    real, other = frames_for_model(sweep, True)
    assert (
        real.points.shape == (34688, 5)
        and not real.points[:, 4].any()
        and real.name.startswith('real, one sweep')
    )
    assert other.points.shape[1] == 5


def test_what_cannot_be_timed_is_named(frame):
    with pytest.raises(
        ValueError,
        match="there is no 'PointPillars' to benchmark; there are stratified pillar 0.3, ",
    ):
        model.run([frame], CPU, FP32, 1, ['PointPillars'], True)
    with pytest.raises(ValueError, match='--runs is 1 or more, not 0'):
        model.run([frame], CPU, FP32, 0, [], True)
    far = BenchmarkFrame('far', frame.points + 300)
    with pytest.raises(ValueError, match='far: none of its .* points lies within 14.4 m'):
        model.run([far], CPU, FP32, 1, [OURS], True)
