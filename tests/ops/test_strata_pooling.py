import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratified3d.ops import (
    chunk_offsets,
    farthest_strata,
    pool_strata,
    sample_strata,
    top_strata,
)

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=4)


def random_rows(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    offsets = torch.tensor([0, *sizes]).cumsum(0).int()
    feats, positions, scores = (
        torch.randn(n, c, generator=generator, dtype=torch.float64) for c in (5, 3, 1)
    )
    return feats, positions, scores, offsets


def plain_chunks(sizes, m):
    start = 0
    for n in sizes:
        for i in range(m):
            yield start + i * n // m, start + (i + 1) * n // m
        start += n


@settings(deadline=None, max_examples=40)
@given(sizes=sizes, m=st.integers(1, 9))
def test_chunks_cut_each_sample_evenly(sizes, m):
    offsets = chunk_offsets(torch.tensor([0, *sizes]).cumsum(0).int(), m).tolist()
    assert list(zip(offsets, offsets[1:])) == list(plain_chunks(sizes, m))


@settings(deadline=None, max_examples=40)
@given(sizes=sizes, m=st.integers(1, 9), seed=st.integers(0, 99))
def test_pooling_is_a_softmax_mean_of_each_chunk(sizes, m, seed):
    feats, positions, scores, offsets = random_rows(sizes, seed)
    tokens, places, present = pool_strata(feats, positions, scores, offsets, m)
    assert tokens.shape == (len(sizes), m, 5) and places.shape == (len(sizes), m, 3)
    for i, (a, b) in enumerate(plain_chunks(sizes, m)):
        token, place, there = (
            tokens.flatten(0, 1)[i],
            places.flatten(0, 1)[i],
            bool(present.flatten()[i]),
        )
        assert there == (b > a)
        expected = (scores[a:b].softmax(0) * feats[a:b]).sum(0)
        torch.testing.assert_close(token, expected)
        torch.testing.assert_close(
            place, positions[a:b].float().mean(0) if there else torch.zeros(3)
        )


def test_pooling_passes_gradcheck():
    feats, positions, scores, offsets = random_rows([7, 0, 2])
    feats.requires_grad_()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, s: pool_strata(f, positions, s, offsets, 3)[0], (feats, scores)
    )


@settings(deadline=None, max_examples=40)
@given(sizes=sizes, m=st.integers(1, 9), random=st.booleans(), seed=st.integers(0, 99))
def test_sampling_takes_a_row_of_each_chunk(sizes, m, random, seed):
    feats, positions, _, offsets = random_rows(sizes, seed)
    draw = torch.rand(len(sizes), m, dtype=torch.float64) if random else None
    tokens, places, present = sample_strata(feats, positions, offsets, m, draw)
    for i, (a, b) in enumerate(plain_chunks(sizes, m)):
        token = tokens.flatten(0, 1)[i]
        if b == a:
            assert (
                not present.flatten()[i] and not token.any() and not places.flatten(0, 1)[i].any()
            )
            continue
        row = a if draw is None else a + int(draw.flatten()[i] * (b - a))
        assert a <= row < b and torch.equal(token, feats[row])
        assert torch.equal(places.flatten(0, 1)[i], positions[row].float())


def test_chunk_offsets_refuse_zero_chunks():
    with pytest.raises(ValueError, match='num_chunks .* not 0'):
        chunk_offsets(torch.tensor([0, 4]), 0)


@settings(deadline=None, max_examples=60)
@given(
    windows=st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=4),
    m=st.integers(1, 9),
    most=st.integers(1, 3),
    levels=st.sampled_from([2, 1000]),
    seed=st.integers(0, 99),
)
def test_top_rows_are_the_best_of_each_sample_and_window(windows, m, most, levels, seed):
    """Against sorting row by row; few levels make many equal scores."""
    sizes = [sum(sample) for sample in windows]
    feats, positions, _, offsets = random_rows(sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (sum(sizes),), generator=generator).double()
    starts = [start for sample in windows for start in sample]
    first = torch.tensor([0, *starts]).cumsum(0)[:-1]
    window_start = first.repeat_interleave(torch.tensor(starts, dtype=torch.long)).int()
    tokens, places, present = top_strata(feats, positions, scores, offsets, window_start, m, most)

    for b, (start, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:])):
        taken = []
        for row in sorted(range(start, end), key=lambda i: (-scores[i].item(), i)):
            in_window = sum(window_start[i] == window_start[row] for i in taken)
            if len(taken) < m and in_window < most:
                taken.append(row)
        assert present[b].tolist() == [True] * len(taken) + [False] * (m - len(taken))
        assert torch.equal(tokens[b, : len(taken)], feats[taken])
        assert torch.equal(places[b, : len(taken)], positions[taken].float())
        assert not tokens[b, len(taken) :].any() and not places[b, len(taken) :].any()


@settings(deadline=None, max_examples=40)
@given(sizes=sizes, m=st.integers(1, 9), seed=st.integers(0, 99))
def test_farthest_rows_are_those_of_a_plain_loop(sizes, m, seed):
    feats, positions, _, offsets = random_rows(sizes, seed)
    tokens, places, present = farthest_strata(feats, positions, offsets, m)
    for b, (start, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:])):
        taken = [start] * (end > start)
        while 0 < len(taken) < min(m, end - start):
            nearest = torch.cdist(positions[start:end], positions[taken]).amin(1)
            taken.append(start + int(nearest.argmax()))
        assert present[b].tolist() == [True] * len(taken) + [False] * (m - len(taken))
        assert torch.equal(tokens[b, : len(taken)], feats[taken])
        assert torch.equal(places[b, : len(taken)], positions[taken].float())
        assert not tokens[b, len(taken) :].any() and not places[b, len(taken) :].any()


def test_chosen_rows_pass_their_gradient_back():
    feats, positions, scores, offsets = random_rows([7, 0, 2])
    feats.requires_grad_()
    start = torch.tensor([0, 0, 0, 3, 3, 5, 5, 7, 8])
    for choose in (
        lambda f: top_strata(f, positions, scores.flatten(), offsets, start, 3, 2)[0],
        lambda f: farthest_strata(f, positions, offsets, 3)[0],
    ):
        assert torch.autograd.gradcheck(choose, (feats,))
