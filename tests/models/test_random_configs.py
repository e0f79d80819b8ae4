"""Whatever sensible config: it builds, learns and predicts, and nothing is ever NaN."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratified3d.layers.strata import SELECTIONS

pytestmark = pytest.mark.slow

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
NAMES = ['car', 'truck', 'bus', 'pedestrian', 'barrier']


@st.composite
def mixers(draw):
    """Settings of a mixer that all have an effect."""
    num_strata = draw(st.sampled_from([0, 1, 5, 64]))
    if not num_strata:
        return dict(num_strata=0)
    mixer = dict(
        num_strata=num_strata,
        fusion=draw(st.sampled_from(['joint', 'gated'])),
        selection=draw(st.sampled_from(SELECTIONS)),
        carry_tokens=draw(st.booleans()),
        collect_scale=draw(st.sampled_from([None, 0.43])),
        token_mixing=draw(st.booleans()),
    )
    if mixer['fusion'] == 'joint':
        mixer['strata_offset'] = draw(st.sampled_from([-4.0, 0.0, 20.0, None]))
    if mixer['selection'] == 'topk':
        mixer['max_per_window'] = draw(st.sampled_from([None, 1, 9]))
    return mixer


@st.composite
def configs(draw):
    """Config of a detector, and how many boxes' numbers and classes it learns."""
    heads, width = draw(st.sampled_from([(1, 8), (2, 8), (3, 6), (2, 12)]))
    shape = st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
    strides = draw(
        st.sampled_from([[(8, 1, 1)], [(4, 1, 1), (2, 1, 1)], [(2, 2, 2), (1, 1, 1)], [(1, 1, 1)]])
    )
    stages = [
        dict(depth=draw(st.integers(1, 3)), window_shape=draw(shape), stride=stride)
        for stride in strides
    ]
    tasks = draw(st.sampled_from([[NAMES], [[name] for name in NAMES], [NAMES[:2], NAMES[2:]]]))
    levels = draw(st.integers(1, 3))
    nms = draw(
        st.sampled_from(
            [dict(type='rotated', iou=0.2), dict(type='circle', radius=[1.0] * len(tasks))]
        )
    )
    return dict(
        type='StratifiedCenterPoint',
        voxel_size=(0.8, 0.8, 0.5),
        point_cloud_range=(-12.8, -12.8, -2, 12.8, 12.8, 2),
        data_preprocessor=dict(type='Det3DDataPreprocessor'),
        voxel_encoder=dict(
            type='DynamicVoxelEncoder',
            in_channels=draw(st.integers(3, 5)),
            hidden_channels=8,
            out_channels=8,
        ),
        encoder=dict(
            type='StratifiedEncoder',
            channels=heads * width,
            num_heads=heads,
            stages=stages,
            mixer=draw(mixers()),
            shifted=draw(st.booleans()),
            use_rotary=draw(st.booleans()),
            use_conv=draw(st.booleans()),
            stem_depth=draw(st.integers(0, 2)),
            ffn_ratio=draw(st.sampled_from([0.5, 2.0])),
            with_cp=draw(st.booleans()),
        ),
        backbone=dict(
            type='ResidualBEVBackbone',
            channels=(8,) * levels,
            depths=(1,) * levels,
            out_channels=8,
            strides=(draw(st.sampled_from([1, 2])), *([2] * (levels - 1))),
        ),
        head=dict(
            type='StratifiedCenterHead',
            tasks=tasks,
            shared_channels=8,
            nms=nms,
            use_velocity=draw(st.booleans()),
            score_threshold=draw(st.sampled_from([0.0, 0.1])),
            max_num=draw(st.sampled_from([1, 50, 500])),
            sync_avg_factor=draw(st.booleans()),
        ),
    )


@SETTINGS
@given(
    config=configs(),
    sizes=st.lists(st.sampled_from([0, 1, 2, 60, 400]), min_size=1, max_size=3),
    num_boxes=st.sampled_from([0, 1, 9]),
    spoil=st.sampled_from([0.0, float('nan'), float('inf'), 1e30]),
    seed=st.integers(0, 2**20),
)
@pytest.mark.filterwarnings('ignore:.* points have NaN')
def test_it_builds_learns_and_predicts(build, batch, config, sizes, num_boxes, spoil, seed):
    model = build(config, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, samples = batch(sizes, num_boxes, seed=seed)
    for cloud in inputs['points']:
        cloud[:3, seed % 5] += spoil
    for sample in samples:
        sample.gt_instances_3d.bboxes_3d.tensor[:1, 7:] = float('nan')  # velocity unknown
    for _ in range(2):
        losses = model(inputs, samples, mode='loss')
        assert all(loss.isfinite() for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(inputs, samples, mode='predict')
    assert len(found) == len(sizes)
    for result in found:
        instances = result.pred_instances_3d
        assert (
            instances.bboxes_3d.tensor.isfinite().all()
            and (instances.bboxes_3d.tensor[:, 3:6] > 0).all()
        )
        assert instances.bboxes_3d.tensor.shape[1] == (9 if config['head']['use_velocity'] else 7)
        assert ((instances.scores_3d >= 0) & (instances.scores_3d <= 1)).all()
        assert ((instances.labels_3d >= 0) & (instances.labels_3d < 5)).all()
