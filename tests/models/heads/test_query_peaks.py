import torch

from stratified3d.models.heads.peaks import local_maxima, select_queries

IS_SMALL = torch.tensor([False, False, True]).view(3, 1, 1)  # car, truck, pedestrian


def test_local_maxima_with_ties_and_borders():
    scores = torch.tensor([[5.0, 1, 0, 2, 2], [1, 1, 0, 2, 2], [0, 0, 0, 0, 0], [3, 0, 4, 4, 1]])
    assert local_maxima(scores).nonzero().tolist() == [[0, 0], [0, 3], [3, 0], [3, 2]]
    assert local_maxima(torch.zeros(2, 3, 4)).nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_queries_are_peaks_and_every_cell_of_small_classes():
    logits = torch.full((1, 3, 16, 32), -9.0)
    logits[0, 0, 4, 7:10] = torch.tensor([3.0, 4, 3.5])  # car: one peak
    logits[0, 2, 9, 20:23] = torch.tensor([1.0, 2, 1.5])  # pedestrians side by side
    scores, labels, cell = select_queries(logits, IS_SMALL, num_proposals=6)
    best = [(0, 4 * 32 + 8), (2, 9 * 32 + 21), (2, 9 * 32 + 22), (2, 9 * 32 + 20)]
    assert list(zip(labels[0].tolist(), cell[0].tolist()))[:4] == best
    torch.testing.assert_close(scores[0, :4], torch.tensor([4.0, 2, 1.5, 1]).sigmoid())


def test_best_other_cells_follow_when_there_are_too_few_peaks_and_score_zero():
    logits = torch.full((1, 3, 1, 3), -9.0)
    logits[0, 0, 0] = torch.tensor([3.0, 4, 3.5])
    no_class_is_small = torch.zeros(3, 1, 1, dtype=torch.bool)
    scores, labels, cell = select_queries(logits, no_class_is_small, num_proposals=5)
    assert scores[0].gt(0).sum() == 3 and not scores[0, 3:].any()
    assert set(zip(labels[0, 3:].tolist(), cell[0, 3:].tolist())) == {(0, 2), (0, 0)}
