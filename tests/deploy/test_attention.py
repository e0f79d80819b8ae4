"""Attention in buckets of windows equals the reference."""

import pytest
import torch

from stratified3d.deploy.attention import BucketedAttention
from stratified3d.ops import collect_strata, plan_windows, read_strata, stratified_attention

WINDOW = (4, 6, 6)
HEADS, WIDTH, TOKENS = 2, 8, 5


def example(count):
    torch.manual_seed(count)
    # crowded near the corner, so that windows of all lengths occur
    places = (torch.rand(4 * count, 3) ** 2 * torch.tensor([4, 40, 40])).int().unique(dim=0)
    coords = torch.cat([torch.zeros_like(places[:, :1]), places], 1)[torch.randperm(len(places))]
    plan = plan_windows(coords[:count], WINDOW, batch_size=1)
    rows = [torch.randn(len(plan.order), HEADS, WIDTH) for _ in range(3)]
    tokens = [torch.randn(1, TOKENS, HEADS, WIDTH) for _ in range(2)]
    bias = torch.randn(1, TOKENS, HEADS)
    bias[0, 3] = -torch.inf
    return plan, rows, tokens, bias


@pytest.fixture
def backend():
    return BucketedAttention(WINDOW[0] * WINDOW[1] * WINDOW[2])


@pytest.mark.parametrize('count', [1, 2, 50, 900])
@pytest.mark.parametrize('with_strata', [True, False])
def test_attention_equals_the_reference(backend, count, with_strata):
    plan, rows, tokens, bias = example(count)
    strata = (*tokens,) if with_strata else ()
    settings = dict(strata_bias=bias) if with_strata else {}
    found = stratified_attention(*rows, plan, *strata, **settings, backend=backend)
    expected = stratified_attention(*rows, plan, *strata, **settings, backend='reference')
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('count', [1, 300])
def test_strata_collect_and_are_read_as_in_the_reference(backend, count):
    plan, (q, k, v), (strata_k, strata_v), bias = example(count)
    for function, arguments, settings in (
        (collect_strata, (strata_k, k, v, plan.batch_offsets), {}),
        (read_strata, (q, strata_k, strata_v, plan.batch_offsets), dict(strata_bias=bias)),
    ):
        found = function(*arguments, **settings, backend=backend)
        expected = function(*arguments, **settings, backend='reference')
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_buckets_are_those_of_the_plan_at_hand(backend):
    for count in (50, 80):
        plan, rows, *_ = example(count)
        found = stratified_attention(*rows, plan, backend=backend)
        torch.testing.assert_close(
            found, stratified_attention(*rows, plan, backend='reference'), rtol=1e-5, atol=1e-5
        )
