import itertools
from functools import partial

import pytest
import torch

from stratified3d.models.heads.box_iou import iou3d_and_distance
from stratified3d.models.heads.matching import match_queries, pairwise_iou

CELL_SIZE = (0.8, 0.4)
SETTINGS = dict(cell_size=CELL_SIZE, feature_map_size=(16, 32), weights=(0.15, 0.25, 0.25))


@pytest.fixture
def random_boxes(random_encodings):
    return partial(random_encodings, size=10, extent=(32, 16))


def test_queries_are_matched_to_the_objects_where_they_are(random_boxes):
    bbox_targets, labels = random_boxes(4, 0), torch.tensor([0, 1, 2, 2])
    encoding = torch.cat(
        [bbox_targets[[2, 0, 3, 1]], bbox_targets[:2] + 50]
    )  # the last two are far from everything
    logits = torch.full((6, 3), -4.0)
    query, index = match_queries(logits, encoding, bbox_targets, labels, **SETTINGS)
    assert (query.tolist(), index.tolist()) == ([0, 1, 2, 3], [2, 0, 3, 1])
    # two queries at one object: the one of its class takes it
    logits[5, 1] = 4
    encoding[5] = encoding[3]
    query, index = match_queries(logits, encoding, bbox_targets, labels, **SETTINGS)
    assert (query.tolist(), index.tolist()) == ([0, 1, 2, 5], [2, 0, 3, 1])


@pytest.mark.parametrize('queries, objects', [(5, 4), (3, 5), (4, 4), (1, 3)])
def test_matching_has_the_least_cost_of_all_permutations(queries, objects, random_boxes):
    encoding, bbox_targets, labels = (
        random_boxes(queries, 1),
        random_boxes(objects, 2),
        torch.arange(objects) % 3,
    )
    encoding[:, :2], bbox_targets[:, :2] = (
        encoding[:, :2] / 8,
        bbox_targets[:, :2] / 8,
    )  # close together
    logits = torch.randn(queries, 3, generator=torch.Generator().manual_seed(0))
    score = logits.sigmoid()
    focal = (-0.25 * (1 - score) ** 2 * score.log() + 0.75 * score**2 * (1 - score).log())[
        :, labels
    ]
    center = ((encoding[:, None, :2] - bbox_targets[:, :2]).abs() / torch.tensor([32, 16])).sum(2)
    cost = 0.15 * focal + 0.25 * center - 0.25 * pairwise_iou(encoding, bbox_targets, CELL_SIZE)
    wide = cost if queries <= objects else cost.T
    least = min(
        sum(float(wide[i, j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    query, index = match_queries(logits, encoding, bbox_targets, labels, **SETTINGS)
    assert (
        len(query) == min(queries, objects) == len(set(query.tolist())) == len(set(index.tolist()))
    )
    assert float(cost[query, index].sum()) == pytest.approx(least)


def test_pairwise_iou_equals_the_iou_of_each_pair(random_boxes):
    encoding, other = random_boxes(30, 3), random_boxes(40, 4)
    rows, columns = (
        i.flatten() for i in torch.meshgrid(torch.arange(30), torch.arange(40), indexing='ij')
    )
    iou = pairwise_iou(encoding, other, CELL_SIZE)
    torch.testing.assert_close(
        iou.flatten(),
        iou3d_and_distance(encoding[rows], other[columns], CELL_SIZE)[0].float(),
        atol=1e-6,
        rtol=0,
    )
    assert 5 < int((iou > 0).sum()) < 600


def test_matching_without_objects_and_with_nan_predictions(random_boxes):
    encoding, logits = random_boxes(5, 5), torch.zeros(5, 3)
    query, index = match_queries(
        logits, encoding, encoding[:0], torch.zeros(0, dtype=torch.long), **SETTINGS
    )
    assert len(query) == len(index) == 0 and query.dtype == torch.long
    broken = encoding.clone()
    broken[0] = torch.nan
    broken[1, 3:6] = 1e9
    logits[2] = torch.inf
    query, index = match_queries(logits, broken, encoding, torch.arange(5) % 3, **SETTINGS)
    assert sorted(index.tolist()) == list(range(5)) and index[3:].tolist() == [3, 4]
