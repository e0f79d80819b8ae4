import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from stratified3d.ops import permute_rows, plan_windows
from stratified3d.testing import random_coords


def morton(z, y, x):
    code = 0
    for bit in range(16):
        code |= (
            (x >> bit & 1) << 3 * bit
            | (y >> bit & 1) << 3 * bit + 1
            | (z >> bit & 1) << 3 * bit + 2
        )
    return code


def plain_plan(coords, window_shape, shift):
    """Sort Python tuples; the reference for everything in a plan."""
    keys = [
        (b, morton(*[(c + s) // w for c, s, w in zip(zyx, shift, window_shape)]))
        for b, *zyx in coords.tolist()
    ]
    order = sorted(range(len(keys)), key=lambda i: keys[i])
    rows = [keys[i] for i in order]
    return (
        order,
        [rows.index(k) for k in rows],
        [rows.index(k) + rows.count(k) for k in rows],
        [k[0] for k in rows],
    )


shapes = st.tuples(st.integers(1, 6), st.integers(1, 25), st.integers(1, 25))


@settings(deadline=None, max_examples=60)
@given(
    shape=shapes,
    window=st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    data=st.data(),
    known=st.booleans(),
)
def test_plan_equals_a_sort_of_tuples(shape, window, sizes, data, known):
    cells = shape[0] * shape[1] * shape[2]
    coords = random_coords([min(s, cells) for s in sizes], shape)
    shift = tuple(data.draw(st.integers(0, w - 1)) for w in window)
    plan = plan_windows(
        coords, window, shift, batch_size=len(sizes), spatial_shape=shape if known else None
    )
    if known and window[0] >= shape[0]:
        shift = (0, *shift[1:])  # z is not shifted where the window spans it
    order, start, end, sample = plain_plan(coords, window, shift)
    assert plan.order.tolist() == order
    assert plan.window_start.tolist() == start and plan.window_end.tolist() == end
    assert plan.sample.tolist() == sample
    assert torch.equal(plan.order[plan.inverse], torch.arange(len(coords)))
    counts = torch.bincount(coords[:, 0], minlength=len(sizes))
    assert plan.batch_offsets.tolist() == [0, *counts.cumsum(0).tolist()]
    assert [t.dtype for t in plan] == [torch.int64] * 2 + [torch.int32] * 4


def test_plan_orders_the_full_range_of_windows():
    coords = torch.tensor(
        [[0, 65535, 65535, 65535], [0, 0, 65535, 0], [30, 0, 0, 1], [0, 65535, 0, 0]],
        dtype=torch.int32,
    )
    plan = plan_windows(coords, (1, 1, 1), batch_size=31)
    assert plan.order.tolist() == plain_plan(coords, (1, 1, 1), (0, 0, 0))[0]


def test_permute_rows_and_its_gradients():
    plan = plan_windows(random_coords([9, 0, 6], (2, 4, 4)), (2, 2, 2), batch_size=3)
    x = torch.randn(15, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(permute_rows(x, plan.order, plan.inverse), x[plan.order])
    assert torch.equal(
        permute_rows(permute_rows(x, plan.order, plan.inverse), plan.inverse, plan.order), x
    )
    torch.autograd.gradcheck(lambda x: permute_rows(x, plan.order, plan.inverse), x)
    torch.autograd.gradgradcheck(lambda x: permute_rows(x, plan.order, plan.inverse).sin(), x)


def test_window_plan_is_a_pytree():
    plan = plan_windows(random_coords([9], (2, 4, 4)), (2, 2, 2), batch_size=1)
    leaves, spec = pytree.tree_flatten(plan)
    assert len(leaves) == 6 and type(pytree.tree_unflatten(leaves, spec)) is type(plan)


GOOD = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)


@pytest.mark.parametrize(
    'coords, arguments, message',
    [
        (GOOD.long(), {}, r'coords are \[N, 4\] int32'),
        (GOOD[:, :3], {}, r'coords are \[N, 4\] int32'),
        (GOOD, dict(shift=(0, 4, 0)), r'shift \(0, 4, 0\) within'),
        (GOOD, dict(shift=(0, -1, 0)), 'within 0 <= shift'),
        (GOOD, dict(window_shape=(0, 4, 4)), r'\(0, 4, 4\) must be'),
        (GOOD, dict(spatial_shape=(9, 9)), r'spatial_shape .* \(9, 9\)'),
        (GOOD, dict(batch_size=0), 'batch_size .* not 0'),
        (-GOOD, {}, 'z runs from -1 to -1'),
        (GOOD + 1, {}, 'batch .* 1 to 1, allowed is 0 to 0'),
        (GOOD, dict(spatial_shape=(4, 4, 3)), 'x .* 3 to 3, allowed is 0 to 2'),
        (GOOD * 100000, {}, 'x .* 300000, allowed is 0 to 262143'),
    ],
)
def test_plan_windows_refuses_bad_arguments(coords, arguments, message):
    arguments = dict(window_shape=(4, 4, 4), batch_size=1) | arguments
    with pytest.raises(ValueError, match=message):
        plan_windows(coords, **arguments)
