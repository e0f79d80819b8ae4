"""Attention whose weights are products of features, so that keys and values are summed up once:
ScatterFormer inside windows, Performer over whole samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projects.attention_zoo.groups import Groups, gather, pad_groups, scatter, window_rows
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid


class LinearWindowAttention(Baseline):
    """f(q_i) S / (f(q_i) z) with S = sum_j f(k_j) v_j^T and z = sum_j f(k_j) over the window of i,
    f = ReLU.

    ScatterFormer (He et al. 2024, section 3.2). Its Triton kernel walks each window; here windows
    are padded to common lengths with keys that add nothing, and the sums are batched products. A
    query whose features meet no key gives zeros.
    """

    defaults = dict(lengths=(16, 32, 64, 128, 256, 512, 1024))
    variants = (
        dict(lengths=(30, 60, 100)),
        dict(lengths=(8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
    )

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        return pad_groups(windows, windows, sample, self.lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        groups, outs = self.prepared(grid), []
        q, k = q.relu(), k.relu()
        for bucket in groups.buckets:
            queries, keys, values = (
                gather(q, bucket.queries),
                gather(k, bucket.keys),
                gather(v, bucket.keys),
            )
            if bucket.key_real is not None:
                keys = keys.masked_fill(~bucket.key_real[:, None, :, None], 0)
            outs.append(_read(queries, keys.transpose(-1, -2) @ values, keys.sum(2).unsqueeze(-1)))
        return scatter(outs, groups, q)


def _read(queries: Tensor, state: Tensor, weight: Tensor) -> Tensor:
    """queries [..., L, F] read state [..., F, D] whose weights [..., F, 1] sum up."""
    total = queries @ weight
    return queries @ state / total.masked_fill(total == 0, 1)


class PerformerAttention(Baseline):
    """The softmax kernel in the mean of positive random features f(x) = exp(w x - |x|^2 / 2), over
    the whole sample.

    Performer (Choromanski et al. 2021, section 2, FAVOR+), with orthogonal features, drawn once for
    all heads from torch's global generator and kept with the weights.
    """

    defaults = dict(num_features=256)
    variants = (dict(num_features=128), dict(num_features=64))

    def build(self) -> None:
        width, count = self.head_dim, self.num_features
        blocks = [torch.linalg.qr(torch.randn(width, width))[0] for _ in range(-(-count // width))]
        norms = torch.randn(count, width).norm(dim=1, keepdim=True)
        self.register_buffer('features', torch.cat(blocks)[:count] * norms)  # [F, D]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        offsets = grid.plan.batch_offsets.tolist()
        outs = [q[:0]]
        for start, end in zip(offsets, offsets[1:]):
            if start == end:
                continue
            queries, keys = (self._exponents(x[start:end]) for x in (q, k))  # [H, n, F]
            # constant factors of a query, and of all keys together, cancel
            queries = (queries - queries.detach().amax(-1, keepdim=True)).exp()
            keys = (keys - keys.detach().amax((1, 2), keepdim=True)).exp()
            out = _read(
                queries,
                keys.transpose(-1, -2) @ v[start:end].transpose(0, 1),
                keys.sum(1).unsqueeze(-1),
            )
            outs.append(out.transpose(0, 1))
        return torch.cat(outs)

    def _exponents(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) / math.sqrt(math.sqrt(self.head_dim))
        return x @ self.features.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2
