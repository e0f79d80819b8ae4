import pytest
import torch

from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.strata_memory import PastTokens
from stratified3d.layers.strata_record import StrataRecord, _Recorder, record_strata
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.ops.stratified_attention import BACKENDS
from stratified3d.testing import random_coords


@pytest.fixture
def grid():
    coords = random_coords([60], (4, 16, 16), seed=0)
    positions = coords[:, 1:].flip(1).float()
    return build_window_grid(
        coords, positions, (4, 8, 8), (0, 0, 0), batch_size=1, spatial_shape=(4, 16, 16), head_dim=8
    )


@pytest.mark.parametrize('fusion', ['joint', 'gated'])
@pytest.mark.parametrize('num_strata', [5, 70])
def test_weights_are_those_of_the_equation(grid, fusion, num_strata):
    """Collected and read weights, put to the values, give what the mixer's own reference gives."""
    torch.manual_seed(0)
    mixer = StratifiedAttention(MixerContext(16, 2), num_strata=num_strata, fusion=fusion).eval()
    x = torch.randn(60, 16)
    with torch.no_grad(), record_strata(mixer) as records:
        inside, _ = mixer(x, grid)
        outside, strata = _plain(mixer, x, grid)
    record = StrataRecord(*map(torch.from_numpy, records[0]))
    torch.testing.assert_close(inside, outside)
    present = min(num_strata, 60)
    assert record.voxels.shape == (60, 3) and record.tokens.shape == (present, 3)
    torch.testing.assert_close(record.collected.sum(1), torch.ones(present))
    torch.testing.assert_close(record.tokens, strata.positions[0][strata.present[0]])
    assert record.effective_voxels.shape == (present,)
    mass = record.read.sum(1)
    if fusion == 'gated':
        torch.testing.assert_close(mass, torch.ones(60))
    else:
        assert (mass > 0).all() and (mass < 1).all()


def _plain(mixer, x, grid):
    backend, mixer.backend = mixer.backend, 'reference'
    result = mixer(x, grid)
    mixer.backend = backend
    return result


def test_joint_weights_follow_from_the_logits(grid):
    """One voxel's reading weights, from its logits written out by hand."""
    torch.manual_seed(1)
    mixer = StratifiedAttention(
        MixerContext(16, 2, use_rotary=False), num_strata=4, strata_offset=-1.0
    ).eval()
    x = torch.randn(60, 16)
    with torch.no_grad(), record_strata(mixer) as records:
        _, strata = mixer(x, grid)
        q, k, _ = mixer.qkv(x[grid.plan.order]).view(60, 3, 2, 8).unbind(1)
        strata_k = mixer.strata_kv(strata.feats).chunk(2, -1)[0].reshape(4, 2, 8)
        start, end = int(grid.plan.window_start[20]), int(grid.plan.window_end[20])
        near = torch.einsum('hd,jhd->jh', q[20], k[start:end]) * 8**-0.5
        far = (
            torch.einsum('hd,mhd->mh', q[20], strata_k) * 8**-0.5
            - 1.0
            - torch.log(torch.tensor(4.0))
        )
        expected = torch.cat([near, far]).softmax(0)[-4:].mean(1)
    torch.testing.assert_close(torch.from_numpy(records[0].read[20]), expected)


@pytest.mark.parametrize('fusion', ['joint', 'gated', 'separate'])
def test_tokens_of_earlier_frames_are_recorded_apart(grid, fusion):
    """Two frames that left the present tokens, at age 0, weigh e^offset of them; absent ones 0."""
    torch.manual_seed(3)
    memory = dict(frames=2, offset=1.0)
    mixer = StratifiedAttention(MixerContext(16, 2), num_strata=70, fusion=fusion, memory=memory)
    x, reads = torch.randn(60, 16), []
    with torch.no_grad():
        _, (feats, positions, present, _) = mixer(x, grid)
        twice = (part.repeat(1, 2, *[1] * (part.dim() - 2)) for part in (feats, positions, present))
        past = PastTokens(*twice, torch.zeros(1, 140))
        plain, _ = mixer(x, grid, None, past)
        with record_strata(mixer, reads) as records:
            mixed, _ = mixer(x, grid, None, past)
            mixer(x, grid)
    torch.testing.assert_close(mixed, plain)
    read, before = torch.from_numpy(records[0].read), torch.from_numpy(reads[0])
    assert read.shape == (60, 60) and before.shape == (60, 140)
    offset = mixer.memory.offset[0].exp().item()
    for frame in before.chunk(2, 1):
        torch.testing.assert_close(frame[:, present[0]], read * offset)
        assert not frame[:, ~present[0]].any()
    mass = read.sum(1) + before.sum(1)
    if fusion == 'joint':
        assert (mass > 0).all() and (mass < 1).all()
    else:
        torch.testing.assert_close(mass, torch.ones(60))
    assert reads[1].shape == (60, 0) and records[1].read.sum() > records[0].read.sum()


def test_the_mixer_is_left_as_it_was(grid):
    mixer = StratifiedAttention(MixerContext(16, 2), num_strata=4, backend='sdpa')
    before = dict(BACKENDS)
    with pytest.raises(RuntimeError, match='stop'), record_strata(mixer):
        raise RuntimeError('stop')
    assert before == BACKENDS and mixer.backend == 'sdpa' and not mixer._forward_hooks


def test_what_has_no_strata_is_named():
    with (
        pytest.raises(ValueError, match='has no strata tokens'),
        record_strata(StratifiedAttention(MixerContext(16, 2), num_strata=0)),
    ):
        pass


def test_effective_voxels_count_what_a_token_reads(grid):
    """Equal logits read all 60 voxels; a large factor on the logits leaves the largest alone."""
    torch.manual_seed(2)
    mixer = StratifiedAttention(MixerContext(16, 2), num_strata=4, collect_scale=1.0).eval()
    x = torch.randn(60, 16)
    found = []
    with torch.no_grad(), record_strata(mixer) as records:
        for factor in (0.0, 0.5, 1.0, 1e5):
            mixer.collect_scale.fill_(factor)
            mixer(x, grid)
            found.append(torch.from_numpy(records[-1].effective_voxels))
    torch.testing.assert_close(found[0], torch.full((4,), 60.0))
    assert (found[1] < found[0]).all() and (found[2] < found[1]).all()
    torch.testing.assert_close(found[3], torch.ones(4))


def test_effective_voxels_are_counted_head_by_head(grid):
    """Two heads that read one voxel each read one voxel, not two."""
    recorder = _Recorder()
    q, k = 1e4 * torch.eye(2).expand(1, 1, 2, 2), torch.zeros(60, 2, 2)
    k[5, 0, 0] = k[9, 1, 1] = 1.0
    recorder.collect_strata(q, k, k, grid.plan.batch_offsets, 1.0)
    assert recorder.effective_voxels.tolist() == [1.0]
    assert recorder.collected[0, [5, 9]].tolist() == [0.5, 0.5]
