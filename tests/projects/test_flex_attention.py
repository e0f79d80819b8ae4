"""FlexAttention beyond its function: what torch compiles, and where it cannot."""

import pytest
import torch

from projects.attention_zoo.layouts import flex
from projects.attention_zoo.layouts.flex import FlexAttention
from stratified3d.layers.attention import MixerContext
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords

CONTEXT = MixerContext(24, 2)


@pytest.mark.parametrize('strata', [0, 5])
def test_a_cpu_compiles_for_a_few_shapes(monkeypatch, strata):
    shapes = set()

    def run(q, k, v, score_mod, block_mask):
        closed = {x.shape for f in (score_mod, block_mask.mask_mod) if f for x in tensors_of(f)}
        shapes.add((q.shape, k.shape, block_mask.kv_indices.shape, frozenset(closed)))
        return q

    def tensors_of(function):
        values = [cell.cell_contents for cell in function.__closure__]
        return [x for x in values if isinstance(x, torch.Tensor)]

    monkeypatch.setattr(flex, '_compiled', lambda device: run)
    mixer = FlexAttention(CONTEXT, num_strata=strata, block_size=8)
    tokens = [torch.randn(1, strata, 2, 12)] * 2 + [torch.randn(1, strata, 2)] if strata else []
    for rows in range(40, 80, 3):  # torch refuses a ninth shape
        coords = random_coords((rows,), (6, 11, 13))
        grid = build_window_grid(
            coords,
            coords[:, 1:].float(),
            (4, 5, 6),
            (0, 0, 0),
            batch_size=1,
            spatial_shape=(6, 11, 13),
            head_dim=12,
        )
        x = torch.randn(rows, 2, 12)
        assert mixer.attend(x, x, x, grid, *tokens).shape == x.shape
    assert len(shapes) == 2


def test_a_folder_with_a_space_is_named(monkeypatch):
    monkeypatch.setattr(torch, '__path__', ['/my data/torch'])
    q = torch.zeros(3, 2, 12)
    assert 'folder with a space (/my data/torch)' in FlexAttention(CONTEXT).unsupported_reason(q)
    assert FlexAttention(CONTEXT, compiled=False).unsupported_reason(q) is None
