"""The traceable program gives the boxes of the model it was made from."""

import numpy as np
import pytest
import torch
from mmengine.config import Config

from stratified3d.apis import detect, init_detector
from stratified3d.deploy.export import export_detector
from stratified3d.deploy.package import PackagedDetector


@pytest.fixture(scope='module')
def run(detector):
    """Runs the program as a package does, with these settings of an export."""
    from stratified3d.deploy.export import build_program

    def make(*settings, **more):
        return PackagedDetector(*build_program(detector, torch.float32, *settings, **more))

    return make


@pytest.fixture(autouse=True)
def exact(detector, monkeypatch):
    monkeypatch.setattr(detector, 'bev_dtype', 'fp32')


@pytest.mark.parametrize('count', [0, 1, 2, 7, 300, 20000])
def test_program_equals_the_model(detector, run, frame, assert_same, count):
    points = frame(count)
    assert_same(run()(points), detect(detector, points))


@pytest.mark.parametrize(
    'mixer',
    [
        dict(fusion='gated'),
        dict(fusion='separate'),
        dict(selection='learned'),
        dict(selection='first'),
        dict(token_mixing=True),
        dict(num_strata=0),
    ],
    ids=str,
)
def test_program_of_other_mixers_equals_the_model(small_detector, mixer, frame, assert_same):
    from stratified3d.deploy.export import build_program

    torch.manual_seed(0)
    config = Config.fromfile(small_detector / 'config.py')
    config.merge_from_dict(
        dict(model=dict(encoder=dict(mixer=mixer), bev_dtype='fp32', head=dict(max_num=40)))
    )
    model = init_detector(config, device='cpu')
    for block in model.encoder.stages[0].blocks:
        if block.mixer.fusion == 'gated':
            torch.nn.init.ones_(block.mixer.gate)  # starts at 0
    points = frame(300)
    expected = detect(model, points)
    assert_same(PackagedDetector(*build_program(model, torch.float32))(points), expected)
    static = PackagedDetector(*build_program(model, torch.float32, 400, num_points=400))
    assert_same(static(points), expected)


@pytest.fixture
def few_peaks(detector, monkeypatch):
    """A static program compares all pairs of the boxes of a task."""
    monkeypatch.setattr(detector.head, 'max_num', 40)


@pytest.mark.usefixtures('few_peaks')
@pytest.mark.parametrize('count', [0, 1, 2, 7, 300, 3000])
def test_static_program_equals_the_model(detector, run, frame, assert_same, count):
    points = frame(count)
    *_, voxels = run()._program(torch.from_numpy(points))
    for spare in (0, 150):
        static = run(max(int(voxels), 1) + spare, num_points=max(count, 1) + spare)
        assert_same(static(points), detect(detector, points))


@pytest.mark.usefixtures('few_peaks')
def test_static_program_keeps_padding_apart(run, frame):
    """Rows behind the last voxel have features of their own, which nothing may read."""
    points = frame(300)
    static = run(1000, num_points=500)
    expected = static(points)
    encoder = static._program.voxel_encoder
    describe = encoder.describe

    def poisoned(points, voxels):
        feats = describe(points, voxels)
        return torch.where(voxels.coords[:, :1] == 1, 1e4, feats)

    encoder.describe = poisoned
    found = static(points)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.slow
@pytest.mark.usefixtures('few_peaks')
def test_static_shapes_do_not_depend_on_the_data(run, monkeypatch):
    from stratified3d.deploy.export import trace

    monkeypatch.setattr('stratified3d.deploy.decode._ROUNDS', 3)
    traced = trace(run(200, num_points=300)._program, 300)
    assert not traced.range_constraints
    for node in traced.graph.nodes:
        values = node.meta.get('val')
        for value in values if isinstance(values, (list, tuple)) else [values]:
            sizes = value.shape if isinstance(value, torch.Tensor) else [value]
            assert not any(isinstance(size, torch.SymInt) for size in sizes), node
    called = {str(node.target) for node in traced.graph.nodes}
    waits = ('nonzero', 'unique', 'while_loop', 'cond', 'aten.item', '_local_scalar')
    assert not [name for name in called if any(word in name for word in waits)]


@pytest.mark.usefixtures('few_peaks')
def test_points_over_static_shapes_are_an_error_or_dropped(detector, run, frame, assert_same):
    near, far = frame(200), frame(200, seed=1)
    near[:, :2] *= 0.2
    far[:, :2] = np.sign(far[:, :2]) * 40
    far[:, 2] = -1
    outside = far + np.float32([1000, 0, 0, 0, 0])
    in_range = int(run()._cells(torch.from_numpy(near))[1].sum())
    refusing = run(1000, num_points=in_range)
    assert_same(refusing(np.concatenate([outside, near])), detect(detector, near))
    both = np.concatenate([far, near])
    with pytest.raises(
        ValueError, match=f'{in_range + 200} points in range .* room for {in_range}'
    ):
        refusing(both)
    packaged = run(1000, 'drop', in_range)
    assert_same(packaged(both), detect(detector, near))
    assert packaged.num_dropped_points == 200


@pytest.mark.usefixtures('few_peaks')
def test_static_program_drops_the_farthest_voxels(detector, run, frame, assert_same):
    points = frame(400)
    *_, voxels = run()._program(torch.from_numpy(points))
    capacity = int(voxels) // 2
    static = run(capacity, 'drop', 400)
    assert_same(static(points), run(capacity, 'drop')(points))
    assert static.num_dropped_voxels == int(voxels) - capacity


@pytest.mark.usefixtures('few_peaks')
def test_too_few_rounds_of_nms_are_an_error(run, frame, monkeypatch):
    monkeypatch.setattr('stratified3d.deploy.decode._ROUNDS', 1)
    with pytest.raises(RuntimeError, match='without --points'):
        run(1000, num_points=500)(frame(300))


def test_points_out_of_range_or_broken_are_no_points(detector, run, frame, assert_same):
    points = frame(500)
    broken = points[:40].copy()
    broken[:20, 2] = np.nan
    broken[20:, 0] = np.inf
    packaged = run()
    with pytest.warns(UserWarning, match='40 points'):
        found = packaged(np.concatenate([points, broken]))
    assert_same(found, packaged(points))
    assert packaged.num_dropped == 40
    points[:, :3] += 1000
    assert len(packaged(points).boxes) == 0


@pytest.mark.parametrize(
    'points, key',
    [
        (np.zeros((5, 3)), r'not \[5, 3\]'),
        (np.zeros((5, 6)), r'not \[5, 6\]'),
        (np.zeros(5), r'not \[5\]'),
        (np.full((5, 5), 31.0), 'ring index'),
    ],
)
def test_other_columns_are_one_sentence(run, points, key):
    with pytest.raises(ValueError, match=key) as error:
        run()(points.astype(np.float32))
    assert '\n' not in str(error.value)


def test_frame_over_the_capacity_is_an_error_before_any_work(run, frame):
    points = frame(500)
    *_, voxels = run()._program(torch.from_numpy(points))
    fits = run(int(voxels))
    fits(points)  # no error
    full = run(int(voxels) - 1)
    full._program = None
    with pytest.raises(ValueError, match=f'{voxels} voxels .* capacity of {voxels - 1}'):
        full(points)


def test_heading_branch_turns_boxes(detector, run, frame):
    points = frame(300)
    expected = run()(points).boxes
    packaged = run()
    packaged._program.head.heading.layers[2].weight.neg_()
    turned = packaged(points).boxes
    np.testing.assert_allclose(turned[:, :6], expected[:, :6], atol=1e-4)
    np.testing.assert_allclose(np.abs(turned[:, 6] - expected[:, 6]), np.pi, atol=1e-3)


def test_farthest_voxels_are_dropped_and_counted(detector, run, frame, assert_same):
    near, far = frame(200), frame(200, seed=1)
    near[:, :2] *= 0.2
    far[:, :2] = np.sign(far[:, :2]) * 40
    *_, voxels = run()._program(torch.from_numpy(near))
    packaged = run(int(voxels), 'drop')
    assert_same(packaged(near), detect(detector, near))
    assert packaged.num_dropped_voxels == 0
    assert_same(packaged(np.concatenate([far, near])), detect(detector, near))
    assert packaged.num_dropped_voxels > 0


def test_frames_in_a_row_do_not_fill_the_memory(run, assert_memory_is_flat):
    assert_memory_is_flat(run())


def test_parts_that_cannot_be_traced_are_named(detector, monkeypatch):
    from stratified3d.deploy.program import DetectorProgram

    monkeypatch.setitem(detector._modules, 'head', torch.nn.Identity())
    with pytest.raises(ValueError, match='head Identity'):
        DetectorProgram(detector)


@pytest.mark.parametrize('channels', [3, 4, 5])
def test_packages_take_five_columns_of_which_models_may_read_fewer(detector, monkeypatch, channels):
    from stratified3d.deploy.export import build_program, trace

    monkeypatch.setattr(detector.voxel_encoder, 'in_channels', channels)
    program, _ = build_program(detector, torch.float32)
    monkeypatch.setattr(torch.export, 'export', lambda program, points, **_: points)
    (points,) = trace(program)
    assert points.shape == (100, 5)


def test_a_model_of_more_columns_is_refused(detector, monkeypatch):
    from stratified3d.deploy.export import build_program

    monkeypatch.setattr(detector.voxel_encoder, 'in_channels', 6)
    with pytest.raises(ValueError, match='voxel encoder of 6 columns'):
        build_program(detector, torch.float32)


def test_a_memory_that_is_left_out_is_a_warning(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(type(detector), 'memory_frames', 3)
    monkeypatch.setattr('stratified3d.deploy.export.trace', lambda *_: None)
    monkeypatch.setattr('stratified3d.deploy.export.compile_program', lambda *_: None)
    with pytest.warns(UserWarning, match='memory of 3 earlier frames is left out'):
        info = export_detector(detector, tmp_path / 'a.pt2')
    assert info['memory_frames'] == 3


def test_environment_in_a_folder_with_a_space_is_refused_at_once(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, '__path__', ['/my data/torch'])
    with pytest.raises(ValueError, match='/my data/torch, and its compiler cannot link .* space'):
        export_detector(detector, tmp_path / 'a.pt2')
