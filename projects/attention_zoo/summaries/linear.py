"""Weights that are products of features: keys and values are summed once.

ScatterFormer does so inside windows, Performer over whole samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from projects.attention_zoo.groups import Groups, gather, pad_groups, scatter, window_rows
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid


class LinearWindowAttention(Baseline):
    """f(q_i) S / (f(q_i) z) with the ReLU as f and sums over the window of i.

    S = sum_j f(k_j) v_j^T and z = sum_j f(k_j). A query whose features meet no key gives zeros.

    ScatterFormer (He et al. 2024, section 3.2). Its Triton kernel walks through each window; here
    windows are padded to common lengths with keys that add nothing, and the sums are batched
    products. Queries and keys are not rotated: the ReLU of rotated ones depends on where the scene
    has its origin, and the authors' attention has no position either.
    """

    takes_rotated = False

    defaults = dict(lengths=(16, 32, 64, 128, 256, 512, 1024))
    variants = (
        dict(lengths=(30, 60, 100)),
        dict(lengths=(8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
    )
    lengths: Sequence[int]

    def build(self) -> None:
        self.check_ascending('lengths')

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        return pad_groups(windows, windows, sample, self.lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        groups = self.prepared(grid)
        q = q.relu()
        k = k.relu()
        outs = []
        for bucket in groups.buckets:
            queries = gather(q, bucket.queries)  # [G, H, L, D]
            keys = gather(k, bucket.keys)  # [G, H, K, D]
            values = gather(v, bucket.keys)
            if bucket.key_valid is not None:
                keys = keys.masked_fill(~bucket.key_valid[:, None, :, None], 0)
            outs.append(attend_features(queries, keys, values))
        return scatter(outs, groups, q)


def attend_features(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with weights f(q) f(k), normalized to a sum of one: [..., L, D].

    Computed in fp32 or wider, also under autocast: sums over a sample overflow fp16.

    Args:
        queries, keys: features [..., L, F] and [..., K, F], not negative.
        values: [..., K, D].
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        queries, keys = queries.to(wide), keys.to(wide)
        state = keys.transpose(-1, -2) @ values.to(wide)  # [..., F, D]
        total = queries @ keys.sum(-2).unsqueeze(-1)
        return (queries @ state / total.masked_fill(total == 0, 1)).to(values.dtype)


class PerformerAttention(Baseline):
    """The softmax kernel as the mean of positive random features, over the whole sample.

    f(x) = exp(w x - |x|^2 / 2) with orthogonal w, drawn once for all heads from torch's global
    generator and saved with the weights.

    Performer (Choromanski et al. 2021, section 2, FAVOR+).
    """

    defaults = dict(num_features=256)
    variants = (dict(num_features=128), dict(num_features=64))
    num_features: int
    features: Tensor

    def build(self) -> None:
        self.check_at_least(1, 'num_features')
        width = self.head_dim
        count = self.num_features
        blocks = [torch.linalg.qr(torch.randn(width, width))[0] for _ in range(-(-count // width))]
        norms = torch.randn(count, width).norm(dim=1, keepdim=True)
        self.register_buffer('features', torch.cat(blocks)[:count] * norms)  # [F, D]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        offsets = grid.plan.batch_offsets.tolist()
        outs = [q[:0]]
        for start, end in zip(offsets, offsets[1:]):
            if start < end:
                rows = slice(start, end)
                outs.append(self._attend_sample(q[rows], k[rows], v[rows]))
        return torch.cat(outs)

    def _attend_sample(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the rows of one sample, q, k, v [n, H, D]."""
        queries = self._exponents(q)  # [H, n, F]
        keys = self._exponents(k)

        # constant factors of a query, and of all keys together, cancel
        queries = (queries - queries.detach().amax(-1, keepdim=True)).exp()
        keys = (keys - keys.detach().amax((1, 2), keepdim=True)).exp()

        return attend_features(queries, keys, v.transpose(0, 1)).transpose(0, 1)

    def _exponents(self, x: Tensor) -> Tensor:
        """Return the exponents [H, n, F] of the features of x [n, H, D]."""
        x = x.transpose(0, 1) / math.sqrt(math.sqrt(self.head_dim))
        norm = x.square().sum(-1, keepdim=True) / 2
        return x @ self.features.to(x.dtype).T - norm
