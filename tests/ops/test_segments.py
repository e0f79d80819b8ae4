import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stratified3d.ops import (
    segment_broadcast,
    segment_ids,
    segment_reduce,
    segment_softmax,
    segments,
)

lengths = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def random_segments(lengths, columns=3, seed=0):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(offsets[-1]), columns, generator=generator, dtype=torch.float64), offsets


def plain(values, offsets, reduce):
    rows = []
    for a, b in zip(offsets.tolist(), offsets.tolist()[1:]):
        part = values[a:b]
        if a == b or reduce == 'sum':
            rows.append(part.sum(0))
        else:
            rows.append(part.mean(0) if reduce == 'mean' else part.amax(0))
    return torch.stack(rows)


@pytest.mark.parametrize('reduce', ['sum', 'mean', 'max'])
@settings(deadline=None, max_examples=30)
@given(lengths=lengths, seed=st.integers(0, 100))
def test_segment_reduce_equals_a_loop_over_segments(reduce, lengths, seed):
    values, offsets = random_segments(lengths, seed=seed)
    values.requires_grad_()
    weight = torch.randn(len(lengths), 3, dtype=torch.float64)
    results = []
    for function in (segment_reduce, plain):
        out = function(values, offsets, reduce)
        (grad,) = torch.autograd.grad((out * weight).sum(), values)
        results.append((out, grad))
    torch.testing.assert_close(results[0], results[1])


def test_gradient_of_a_maximum_is_shared_in_a_tie():
    values = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)
    segment_reduce(values, torch.tensor([0, 3]), 'max').backward(torch.tensor([[2.0]]))
    assert values.grad.tolist() == [[1.0], [1.0], [0.0]]


@settings(deadline=None, max_examples=30)
@given(lengths=lengths)
def test_segment_broadcast_and_ids_repeat_each_segment(lengths):
    _, offsets = random_segments(lengths)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    assert torch.equal(segment_ids(offsets, int(offsets[-1])), ids)
    values = torch.randn(len(lengths), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: segment_broadcast(v, offsets, int(offsets[-1])), values
    )
    assert torch.equal(segment_broadcast(values, offsets, len(ids)), values[ids])


@settings(deadline=None, max_examples=30)
@given(lengths=lengths)
def test_segment_softmax_equals_a_loop_over_segments(lengths):
    scores, offsets = random_segments(lengths, 1)
    scores = (scores * 50).requires_grad_()
    weights = segment_softmax(scores, offsets)
    expected = torch.cat(
        [scores[a:b].softmax(0) for a, b in zip(offsets.tolist(), offsets.tolist()[1:])]
    )
    torch.testing.assert_close(weights, expected)
    assert torch.autograd.gradcheck(lambda s: segment_softmax(s, offsets), scores)


def test_segment_reduce_refuses_unknown_reductions():
    with pytest.raises(ValueError, match="not 'median'"):
        segment_reduce(torch.zeros(1, 1), torch.tensor([0, 1]), 'median')


@settings(deadline=None, max_examples=30)
@example(lengths=[0, 300, 0, 1], seed=0)
@example(lengths=[0], seed=0)
@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_sums_of_a_gpu_equal_a_loop_over_segments(lengths, seed):
    # the same call runs on a CPU; segments this long are cut
    values, offsets = random_segments(lengths, seed=seed)
    torch.testing.assert_close(segments._sum_chunks(values, offsets), plain(values, offsets, 'sum'))


def test_gradients_of_half_rows_are_summed_in_fp32(monkeypatch):
    # a GPU adds up in the dtype that it is given
    seen = []
    right = segments._sum_rows
    monkeypatch.setattr(
        segments, '_sum_rows', lambda x, offsets: (seen.append(x.dtype), right(x, offsets))[1]
    )
    offsets = torch.tensor([0, 3000])
    values = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    segment_broadcast(values, offsets, 3000).sum().backward()
    assert seen == [torch.float32]
    assert values.grad.dtype == torch.bfloat16 and values.grad.tolist() == [[3008.0, 3008.0]]
