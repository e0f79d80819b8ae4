"""Training on clips: gradients end at the keyframe, all parameters take part, processes agree."""

import copy
import warnings

import pytest
import torch

from stratified3d.models.clips import split_clip

SIZES = (600, 300, 0, 200)


def test_steps_hold_every_point_once_in_its_own_frame(clip_batch):
    inputs, samples = clip_batch(SIZES)
    steps = split_clip(inputs['points'], samples)
    assert len(steps) == 3 and steps[-1].times.tolist() == [0] * 4
    assert torch.equal(steps[-1].poses, torch.eye(4).double().expand(4, 4, 4))
    for i, (points, sample) in enumerate(zip(inputs['points'], samples)):
        assert sum(len(step.points[i]) for step in steps) == len(points)
        for step, age in zip(steps[::-1], (0.0, *sample.metainfo['clip']['ages'])):
            own = points[points[:, 4] == age]
            back = step.points[i][:, :3].double() @ step.poses[i, :3, :3].T + step.poses[i, :3, 3]
            torch.testing.assert_close(back.float(), own[:, :3], atol=1e-5, rtol=1e-5)
            assert step.times[i] == -age and not step.points[i][:, 4].any()
            assert torch.equal(step.points[i][:, 3], own[:, 3])
    assert not len(steps[0].points[1]) and not len(steps[1].points[2])


def test_points_of_no_sweep_are_left_out(clip_batch):
    inputs, samples = clip_batch((50,), ages=((0.1, 0.2),))
    inputs['points'][0][:20, 4] = 0.15  # a pasted object may have more sweeps than the clip
    steps = split_clip(inputs['points'], samples)
    assert sum(len(step.points[0]) for step in steps) == 30


def test_points_between_two_close_sweeps_are_of_the_nearer_one(clip_batch):
    inputs, samples = clip_batch((40,), ages=((0.1, 0.13),))
    inputs['points'][0][:, 4] = 0.117
    assert [len(step.points[0]) for step in split_clip(inputs['points'], samples)] == [40, 0, 0]


@pytest.mark.parametrize('selection', ['pool', 'topk'])
def test_every_parameter_learns_also_where_nothing_came_before(
    clip_config, build, clip_batch, selection
):
    clip_config['encoder']['mixer'].update(selection=selection)
    model = build(clip_config).train()
    for sizes, ages in ((SIZES, ((0.05, 0.1),)), ((300, 0), ((),))):
        model.zero_grad()
        losses = model.loss(*clip_batch(sizes, ages))
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        memory = [p.grad for name, p in model.named_parameters() if '.memory.' in name]
        assert len(memory) == 8
        assert all(bool(grad.any()) == bool(ages[0]) for grad in memory)


def test_every_parameter_learns_under_autocast(clip_config, build, clip_batch, monkeypatch):
    """The keyframe casts its weights anew: older torch kept them without gradient."""
    model, events = build(clip_config).train(), []
    encode, clear = model._encode, torch.clear_autocast_cache
    monkeypatch.setattr(model, '_encode', lambda *args: (events.append('encode'), encode(*args))[1])
    monkeypatch.setattr(torch, 'clear_autocast_cache', lambda: (events.append('clear'), clear()))
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(*clip_batch((600, 300), ((0.05, 0.1),)))
        assert events == ['encode', 'encode', 'clear', 'encode']
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or not name.startswith('encoder'), name


def test_no_gradient_flows_into_the_past(clip_config, build, clip_batch, monkeypatch):
    model = build(clip_config).train()
    seen = []

    def watch(points, samples):
        steps = split_clip(points, samples)
        for step in steps:
            seen.append([x.requires_grad_() for x in step.points])
        return steps

    monkeypatch.setattr('stratified3d.models.detector.split_clip', watch)
    losses = model.loss(*clip_batch((600, 300), ((0.05, 0.1),)))
    sum(losses.values()).backward()
    *earlier, keyframe = seen
    assert len(earlier) == 2 and all(len(x) for step in earlier for x in step)
    assert all(x.grad is None for step in earlier for x in step)
    assert all(x.grad.any() for x in keyframe)


@pytest.mark.parametrize('with_cp', [False, True])
def test_past_sweeps_change_the_loss(clip_config, build, clip_batch, with_cp):
    clip_config['encoder']['with_cp'] = with_cp
    model = build(clip_config).train()
    results = []
    for keep in (True, False):
        inputs, samples = clip_batch((600,), ((0.05, 0.1),))
        if not keep:
            (points,) = inputs['points']
            inputs = dict(points=[points[points[:, 4] == 0]])
        model.zero_grad()
        loss = sum(model.loss(inputs, samples).values())
        loss.backward()
        results.append(loss.item())
    assert results[0] != pytest.approx(results[1], rel=1e-6)


def test_checkpointed_clips_have_the_same_gradients(clip_config, build, clip_batch):
    gradients = []
    for with_cp in (False, True):
        clip_config['encoder']['with_cp'] = with_cp
        model = build(clip_config).train()
        sum(model.loss(*clip_batch((400, 300))).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_training_without_clips_is_an_error(clip_config, build, batch, clip_batch):
    model = build(clip_config).train()
    with pytest.raises(ValueError, match='PackClip'):
        model.loss(*batch((100, 50)))
    inputs, samples = clip_batch((100, 50))
    _, plain = batch((100, 50))
    with pytest.raises(ValueError, match='1 samples'):
        model.loss(inputs, [samples[0], plain[1]])


def test_prediction_without_clips_is_that_of_a_first_frame(clip_config, build, batch):
    model = build(clip_config).eval()
    inputs, samples = batch((400,))
    inputs['points'][0][:, 4] = 0
    (found,) = model.predict(inputs, copy.deepcopy(samples))
    first, _ = model.stream(inputs['points'][0], torch.eye(4), 0.0)
    assert torch.equal(found.pred_instances_3d.scores_3d, first.pred_instances_3d.scores_3d)


def test_stacked_sweeps_without_clips_are_warned_of_once(clip_config, build, batch):
    model, (inputs, samples) = build(clip_config).eval(), batch((400, 0))
    inputs['points'][0][5, 4] = -3.21
    inputs['points'][0][9, 4] = torch.inf  # such points are left out
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        model.predict(inputs, copy.deepcopy(samples))
        model.predict(inputs, copy.deepcopy(samples))
    told = [str(each.message) for each in found if 'PackClip' in str(each.message)]
    assert len(told) == 1 and '3.21 s' in told[0]


def test_a_stream_takes_one_sweep_at_a_time(clip_config, build, batch):
    model, (inputs, _) = build(clip_config).eval(), batch((400,))
    (points,) = inputs['points']
    points[:, 4] = torch.where(torch.arange(400) % 2 > 0, 0.05, 0.0)
    with pytest.raises(ValueError, match=r'not up to 0\.05 s'):
        model.stream(points, torch.eye(4), 0.0)
    points[:, 4] = 0
    points[7, 4] = torch.nan  # left out
    with pytest.warns(UserWarning, match='1 points have NaN'):
        model.stream(points, torch.eye(4), 0.0)


def test_detectors_without_memory_take_stacked_sweeps(small_config, build, batch):
    model, (inputs, samples) = build(small_config).eval(), batch((400,))
    (found,) = model.predict(inputs, copy.deepcopy(samples))
    streamed, _ = model.stream(inputs['points'][0], torch.eye(4), 0.0)
    assert torch.equal(found.pred_instances_3d.scores_3d, streamed.pred_instances_3d.scores_3d)
