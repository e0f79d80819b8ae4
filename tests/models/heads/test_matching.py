import itertools

import pytest
import torch

from stratified3d.models.heads.box_iou import iou3d_and_distance
from stratified3d.models.heads.matching import match_queries, pairwise_iou

CELL = (0.8, 0.4)
SETTINGS = dict(cell_size=CELL, feature_map_size=(16, 32), weights=(0.15, 0.25, 0.25))


def random_codes(count, seed):
    draw = torch.Generator().manual_seed(seed)
    code = torch.randn(count, 10, generator=draw)
    code[:, :2] = torch.rand(count, 2, generator=draw) * torch.tensor([32, 16])
    code[:, 3:6] = code[:, 3:6] / 4 + torch.tensor([1.2, 0.6, 0.4])
    return code


def test_the_obvious_pairs_are_taken():
    true_code, labels = random_codes(4, 0), torch.tensor([0, 1, 2, 2])
    code = torch.cat(
        [true_code[[2, 0, 3, 1]], true_code[:2] + 50]
    )  # the last two are far from everything
    logits = torch.full((6, 3), -4.0)
    query, truth = match_queries(logits, code, true_code, labels, **SETTINGS)
    assert (query.tolist(), truth.tolist()) == ([0, 1, 2, 3], [2, 0, 3, 1])
    # two queries at one object: the one of its class takes it
    logits[5, 1] = 4
    code[5] = code[3]
    query, truth = match_queries(logits, code, true_code, labels, **SETTINGS)
    assert (query.tolist(), truth.tolist()) == ([0, 1, 2, 5], [2, 0, 3, 1])


@pytest.mark.parametrize('queries, objects', [(5, 4), (3, 5), (4, 4), (1, 3)])
def test_the_sum_of_costs_is_the_least_of_all_permutations(queries, objects):
    code, true_code, labels = (
        random_codes(queries, 1),
        random_codes(objects, 2),
        torch.arange(objects) % 3,
    )
    code[:, :2], true_code[:, :2] = code[:, :2] / 8, true_code[:, :2] / 8  # close together
    logits = torch.randn(queries, 3, generator=torch.Generator().manual_seed(0))
    score = logits.sigmoid()
    focal = (-0.25 * (1 - score) ** 2 * score.log() + 0.75 * score**2 * (1 - score).log())[
        :, labels
    ]
    center = ((code[:, None, :2] - true_code[:, :2]).abs() / torch.tensor([32, 16])).sum(2)
    cost = 0.15 * focal + 0.25 * center - 0.25 * pairwise_iou(code, true_code, CELL)
    wide = cost if queries <= objects else cost.T
    least = min(
        sum(float(wide[i, j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    query, truth = match_queries(logits, code, true_code, labels, **SETTINGS)
    assert (
        len(query) == min(queries, objects) == len(set(query.tolist())) == len(set(truth.tolist()))
    )
    assert float(cost[query, truth].sum()) == pytest.approx(least)


def test_overlap_of_all_pairs_equals_that_of_each():
    code, other = random_codes(30, 3), random_codes(40, 4)
    rows, columns = (
        i.flatten() for i in torch.meshgrid(torch.arange(30), torch.arange(40), indexing='ij')
    )
    iou = pairwise_iou(code, other, CELL)
    torch.testing.assert_close(
        iou.flatten(),
        iou3d_and_distance(code[rows], other[columns], CELL)[0].float(),
        atol=1e-6,
        rtol=0,
    )
    assert 5 < int((iou > 0).sum()) < 600


def test_no_object_gives_no_pair_and_no_number_no_error():
    code, logits = random_codes(5, 5), torch.zeros(5, 3)
    query, truth = match_queries(
        logits, code, code[:0], torch.zeros(0, dtype=torch.long), **SETTINGS
    )
    assert len(query) == len(truth) == 0 and query.dtype == torch.long
    bad = code.clone()
    bad[0], bad[1, 3:6], logits[2] = torch.nan, 1e9, torch.inf
    query, truth = match_queries(logits, bad, code, torch.arange(5) % 3, **SETTINGS)
    assert sorted(truth.tolist()) == list(range(5)) and truth[3:].tolist() == [3, 4]
