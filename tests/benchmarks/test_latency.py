"""Whole detectors side by side: the checks before they are timed, and the parts of the time."""

import pytest
import torch

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks.detectors import latency
from benchmarks.detectors.builders import (
    ONE_THREAD,
    PILLAR,
    RULEBOOK,
    SPCONV,
    VOXEL,
    list_entries,
)
from benchmarks.detectors.detector import Detector
from benchmarks.detectors.synthetic import SyntheticObjects
from benchmarks.point_clouds import BenchmarkFrame, frames_for_model, simulate_points
from stratified3d.models.heads import center as center_head
from stratified3d.models.heads import peaks as head_peaks

pytestmark = pytest.mark.slow

CPU, FP32, REACH = torch.device('cpu'), torch.float32, 9.6
OURS = 'stratified pillar 0.3'


@pytest.fixture(scope='module')
def frame():
    return BenchmarkFrame('simulated', simulate_points(1))


@pytest.fixture(scope='module')
def entries():
    return {entry.name: entry for entry in list_entries(REACH)}


@pytest.fixture(scope='module')
def objects():
    return SyntheticObjects(REACH)


@pytest.fixture(scope='module')
def ours(frame, entries, objects):
    """A detector that passed the check, and the outputs of its head."""
    (detector,), _ = latency.prepare(entries[OURS], frame.points, objects, CPU, FP32)
    detector.detect(frame.points)
    outputs = {name: [x.clone() for x in tensors] for name, tensors in detector.outputs.items()}
    return detector, outputs


@pytest.fixture(scope='module')
def result(frame):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, 'QUICK_REACH', REACH)
        patch.setattr(latency, 'TUNING_ROUNDS', 1)
        return latency.run([frame], CPU, FP32, 2, [OURS, PILLAR, VOXEL], True)


@pytest.mark.slow
def test_detectors_have_the_same_head_and_the_cells_of_their_config():
    widths, classes, cells = set(), set(), {}
    for entry in list_entries():
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
            (head.cell_size[0], head.origin[0])
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


@pytest.mark.slow
def test_rows_of_variants_and_of_the_fastest(result):
    assert [row['name'] for row in result['rows']] == [OURS, PILLAR, VOXEL]
    for row in result['rows']:
        assert row['cells'] == (round(2 * REACH / row['cell']),) * 2 and row['voxels'] > 300
        assert 4e6 < row['parameters'] < 2e7
        assert all(row['ms'][part].median > 0 for part in latency.PARTS)
        assert set(row['ratio']) == {PILLAR, VOXEL} and len(row['total_ms_of_each_round']) == 2
        fastest = min(
            variant['total_ms'].median
            for variant in result['variants']
            if variant['name'] == row['name'] and 'refused' not in variant
        )
        (chosen,) = (
            t
            for t in result['variants']
            if (t['name'], t['settings']) == (row['name'], row['settings'])
        )
        assert chosen['total_ms'].median == fastest
    assert result['rows'][1]['ratio'][PILLAR].median == 1
    settings = [row['settings'] for row in result['variants'] if row['name'] == VOXEL]
    assert settings[0] == dict(layout='contiguous', convolution=SPCONV) and len(settings) == 5
    correct = [
        row['settings']['convolution']
        for row in result['variants']
        if row['name'] == VOXEL and 'total_ms' in row
    ]
    assert correct.count(ONE_THREAD) == correct.count(RULEBOOK) == 2


@pytest.mark.slow
def test_tables_name_every_detector_and_variant(result):
    text = latency.render(result)
    assert (
        text.index('voxelize')
        < text.index(f'| {OURS}')
        < text.index('Total over')
        < text.index('every variant')
    )
    # parts; ratios, a column and a row; the detectors; every variant
    assert text.count(f'| {VOXEL} ') == 4 + 5
    refused = dict(result['variants'][0], refused='wrong, so not timed: the head is off by 1.0e+00')
    del refused['total_ms']
    text = latency.render(
        dict(result, rows=result['rows'][1:], variants=[refused, *result['variants'][1:]])
    )
    assert text.count(f'| {OURS} ') == 2 and text.count(refused['refused']) == 1


def test_parts_add_up_to_the_total(ours, frame):
    detector, _ = ours
    spent = latency.time_pass(detector, frame.points)
    assert list(spent) == [*latency.PARTS, 'total'] and min(spent.values()) > 0
    assert sum(spent[part] for part in latency.PARTS) == pytest.approx(spent['total'], rel=0.02)


def test_detector_with_wrong_attention_is_refused(ours, frame, monkeypatch):
    detector, expected = ours
    assert latency.check(detector, frame.points, expected) is None
    attention = detector.model.encoder.stages[0].blocks[0].mixer
    attend = attention.attend
    for wrong in (1.02, torch.nan):
        monkeypatch.setattr(attention, 'attend', lambda *args, wrong=wrong: attend(*args) * wrong)
        refused = latency.check(detector, frame.points, expected)
        assert refused.startswith("wrong, so not timed: the head's heatmaps are off by")
    assert refused.endswith(' nan')
    monkeypatch.setattr(
        detector, 'detect', lambda points: (_ for _ in ()).throw(RuntimeError('no CUDA here\nmore'))
    )
    assert (
        latency.check(detector, frame.points, expected)
        == 'does not run: RuntimeError: no CUDA here'
    )


def test_detector_with_wrong_boxes_is_refused_in_every_dtype(ours, frame, monkeypatch):
    detector, expected = ours
    right = center_head.run_branches_at
    monkeypatch.setattr(
        center_head,
        'run_branches_at',
        lambda branches, maps, peaks: right(
            branches, maps, peaks._replace(x=(peaks.x + 1).clamp(max=maps.shape[3] - 1))
        ),
    )
    for tolerance in latency.TOLERANCES.values():
        monkeypatch.setitem(latency.TOLERANCES, FP32, tolerance)
        assert latency.check(detector, frame.points, expected).startswith(
            "wrong, so not timed: the head's boxes are off by"
        )


def test_wrong_nms_and_decoding_are_noticed(frame, entries, objects, monkeypatch):
    entry = entries[OURS]
    detector = Detector(entry, entry.build(), {}, objects, CPU, FP32)
    assert objects.check(detector.detect(frame.points)) is None
    with monkeypatch.context() as patch:
        patch.setattr(
            head_peaks, 'rotated_nms', lambda boxes, scores, *_: torch.arange(len(scores))
        )
        assert (
            objects.check(detector.detect(frame.points))
            == '270 boxes are found instead of 54 synthetic ones'
        )
    detector.model.head.cell_size = [0.62, 0.62]
    assert 'a synthetic box is found' in objects.check(detector.detect(frame.points))


def test_synthetic_objects_need_room(objects):
    out = ([dict(heatmap=torch.zeros(1, 1, 8, 8))],)
    with pytest.raises(ValueError, match='8 x 8 cells of 0.6 m'):
        objects.outputs(out, 0.6, -2.4)


def test_frames_of_a_real_and_a_simulated_sweep(tiny_set):
    sweep = next((tiny_set / 'samples/LIDAR_TOP').glob('*.bin'))
    real, other = frames_for_model(sweep, True)
    assert (
        real.points.shape == (34688, 5)
        and not real.points[:, 4].any()
        and real.name.startswith('real, one sweep')
    )
    assert other.points.shape[1] == 5


def test_unknown_names_rounds_and_far_frames_are_named(frame):
    with pytest.raises(
        ValueError,
        match="'PointPillars'; there are stratified pillar 0.3, ",
    ):
        latency.run([frame], CPU, FP32, 1, ['PointPillars'], True)
    with pytest.raises(ValueError, match='--runs .* not 0'):
        latency.run([frame], CPU, FP32, 0, [], True)
    far = BenchmarkFrame('far', frame.points + 300)
    with pytest.raises(ValueError, match='far: .* within 14.4 m'):
        latency.run([far], CPU, FP32, 1, [OURS], True)
