"""What only a GPU can show: no waiting, few kernels, CUDA graphs, addresses beyond 32 bits."""

import pytest
import torch

from stratified3d import ops
from stratified3d.doctor.execution import check_long_addresses, no_waiting
from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
SHAPE = (8, 40, 40)


def make_inputs(sizes=(3000, 0, 2000), heads=4, width=32, strata=64, seed=0):
    coords = random_coords(sizes, SHAPE, seed).cuda()
    q, k, v = torch.randn(3, len(coords), heads, width, device='cuda', dtype=torch.bfloat16).unbind(
        0
    )
    tokens = torch.randn(
        3, len(sizes), strata, heads, width, device='cuda', dtype=torch.bfloat16
    ).unbind(0)
    bias = torch.randn(len(sizes), strata, heads, device='cuda')
    return coords, [x.requires_grad_() for x in (q, k, v, *tokens, bias)]


def run_all(coords, inputs, batch=3):
    """Plan and the three functions, forward and backward."""
    q, k, v, sq, sk, sv, bias = inputs
    plan = ops.plan_windows(coords, (8, 12, 12), batch_size=batch, spatial_shape=SHAPE)
    outs = [
        ops.stratified_attention(q, k, v, plan, sk, sv, strata_bias=bias),
        ops.collect_strata(sq, k, v, plan.batch_offsets),
        ops.read_strata(q, sk, sv, plan.batch_offsets, strata_bias=bias),
    ]
    return torch.autograd.grad(outs, inputs, [torch.ones_like(x) for x in outs])


def make_block(channels=128, heads=4):
    pytest.importorskip('spconv')
    from stratified3d.layers.block import StratifiedBlock

    torch.manual_seed(0)
    return StratifiedBlock(channels, StratifiedAttention(MixerContext(channels, heads))).cuda()


def mix(block, coords, feats, batch=3):
    positions = coords[:, 1:].flip(1).float() * 0.3
    grid = build_window_grid(
        coords,
        positions,
        (8, 12, 12),
        (0, 0, 0),
        batch_size=batch,
        spatial_shape=SHAPE,
        head_dim=32,
    )
    return block.mix(feats, grid)[0]


def launched_kernels(call):
    """Names of the device kernels that a call launches."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def test_attention_does_not_wait_for_the_device():
    coords, inputs = make_inputs()
    run_all(coords, inputs)  # compiles
    with no_waiting():
        run_all(coords, inputs)


def test_block_does_not_wait_for_the_device():
    coords, _ = make_inputs()
    block, feats = make_block(), torch.randn(len(coords), 128, device='cuda', requires_grad=True)
    mix(block, coords, feats).sum().backward()
    with no_waiting():
        mix(block, coords, feats).sum().backward()


def test_stage_without_convolutions_does_not_wait_for_the_device():
    pytest.importorskip('spconv')
    from stratified3d.layers.block import StratifiedStage
    from stratified3d.layers.sparse_conv import SparseConvTensor

    coords, _ = make_inputs()
    stage = StratifiedStage(
        128,
        2,
        lambda i: StratifiedAttention(MixerContext(128, 4, block=i)),
        (8, 12, 12),
        head_dim=32,
        use_conv=False,
    ).cuda()
    feats, positions = (
        torch.randn(len(coords), 128, device='cuda', requires_grad=True),
        coords[:, [3, 2, 1]] * 0.3,
    )

    def step():
        x = SparseConvTensor(feats, coords, list(SHAPE), 3)
        stage(*stage.order_voxels(x, positions)).features.sum().backward()

    step()
    with no_waiting():
        step()


def test_attention_launches_few_kernels():
    coords, (q, k, v, sq, sk, sv, bias) = make_inputs()
    plan = ops.plan_windows(coords, (8, 12, 12), batch_size=3, spatial_shape=SHAPE)
    attend = launched_kernels(
        lambda: ops.stratified_attention(q, k, v, plan, sk, sv, strata_bias=bias)
    )
    assert attend == ['attend_kernel']
    tables = ops.rotary_angles(torch.randn(len(q), 3, device='cuda'), 32)
    assert launched_kernels(lambda: ops.apply_rotary(q, *tables)) == ['rotate_kernel']
    assert launched_kernels(lambda: ops.collect_strata(sq, k, v, plan.batch_offsets)) == [
        'collect_kernel',
        'combine_kernel',
    ]
    block, feats = make_block(), torch.randn(len(coords), 128, device='cuda')
    names = launched_kernels(lambda: mix(block, coords, feats))
    assert sum(name in ('attend_kernel', 'collect_kernel', 'combine_kernel') for name in names) == 3
    assert len(names) < 150, f'{len(names)} kernels'


def test_plan_and_block_are_captured_in_a_cuda_graph():
    coords, _ = make_inputs()
    other, _ = make_inputs(seed=1)
    block, feats = make_block(), torch.randn(len(coords), 128, device='cuda')
    static_coords, static_feats = coords.clone(), feats.clone()
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            mix(block, static_coords, static_feats)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = mix(block, static_coords, static_feats)
        for c in (coords, other):
            static_coords.copy_(c)
            graph.replay()
            assert relative_error(out, mix(block, c, feats)) < 1e-5


def test_attention_addresses_rows_beyond_32_bits():
    assert check_long_addresses('cuda')
