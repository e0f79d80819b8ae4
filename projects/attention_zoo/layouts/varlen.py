"""torch's variable-length attention over windows and over strata, merged by the log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from projects.attention_zoo.groups import fold_bias, window_rows
from projects.attention_zoo.layouts.nested import append_strata
from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.window_grid import WindowGrid


class Sequences(NamedTuple):
    """S sequences of queries and keys, as torch's kernel takes them.

    Attributes:
        offsets_q, offsets_k: [S + 1] int32, where the queries and keys of a sequence start and end.
        longest_q, longest_k: length of the longest sequence, as Python numbers.
    """

    offsets_q: Tensor
    offsets_k: Tensor
    longest_q: int
    longest_k: int


class VarlenAttention(JointBaseline):
    """Windows are the sequences of one call of torch.nn.attention.varlen, strata those of another.

    The two are merged exactly. The bias of the strata is a column of their keys, which widens the
    heads of that call to a multiple of `width`. With as_one the strata are keys of the windows
    instead, copied to each of them, in a single call.

    The library's flash kernel (Dao 2023) supports fp16 and bf16 on a GPU; anything else is an
    error.
    """

    defaults = dict(as_one=False, width=8)
    variants = (dict(width=32), dict(as_one=True))
    as_one: bool
    width: int

    def build(self) -> None:
        self.check_at_least(1, 'width')

    def unsupported_reason(self, q: Tensor) -> str | None:
        if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
            return None
        dtype = str(q.dtype).removeprefix('torch.')
        return (
            'torch.nn.attention.varlen runs on CUDA in fp16 and bf16 only, not on '
            f'{q.device.type} in {dtype}: train with --amp on a GPU, or use another mixer'
        )

    def prepare(self, grid: WindowGrid) -> tuple[Sequences, Sequences, Tensor]:
        """Return the windows, the samples with their strata, and the rows of the windows' keys."""
        windows, sample = window_rows(grid.plan)
        strata = self.num_strata
        batch_offsets = grid.plan.batch_offsets
        tokens = torch.arange(len(batch_offsets), device=sample.device, dtype=torch.int32) * strata
        samples = Sequences(batch_offsets, tokens, int(batch_offsets.diff().max()), strata)

        offsets = windows.offsets.int()
        longest = int(offsets.diff().max()) if len(sample) else 0
        if not self.as_one:
            return Sequences(offsets, offsets, longest, longest), samples, windows.rows

        keys = append_strata(windows, sample, strata)
        wide = Sequences(offsets, keys.offsets.int(), longest, longest + strata)
        return wide, samples, keys.rows

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: WindowGrid,
        strata_k: Tensor | None = None,
        strata_v: Tensor | None = None,
        strata_bias: Tensor | None = None,
    ) -> Tensor:
        reason = self.unsupported_reason(q)
        if reason:
            raise ValueError(reason)
        if not len(q):
            return q * 1

        windows, samples, rows = self.prepared(grid)
        width = q.shape[-1]
        scale = width**-0.5
        if strata_k is None:
            alone = windows._replace(offsets_k=windows.offsets_q, longest_k=windows.longest_q)
            return _OneCall.apply(q, k, v, alone, scale)

        assert strata_v is not None  # both or none
        wide_q, wide_k, wide_v, strata_k, strata_v = fold_bias(
            q, k, v, strata_k, strata_v, strata_bias, self.width
        )
        strata_k = strata_k.flatten(0, 1)  # [B M, H, D]
        strata_v = strata_v.flatten(0, 1)
        if self.as_one:
            keys = torch.cat([wide_k, strata_k]).index_select(0, rows)
            values = torch.cat([wide_v, strata_v]).index_select(0, rows)
            return _OneCall.apply(wide_q, keys, values, windows, scale)[..., :width]
        return _MergedCalls.apply(q, k, v, wide_q, strata_k, strata_v, windows, samples, scale)


class _OneCall(torch.autograd.Function):
    """One call of the kernel, with its backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, where, scale):
        out, lse = _forward(q, k, v, where, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = where, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = _backward(grad.contiguous(), *ctx.saved_tensors, *ctx.rest)
        return (*grads, None, None)


class _MergedCalls(torch.autograd.Function):
    """One softmax over two sets of keys, those in the window and the strata of the sample.

    (q, k, v) are [N, H, D]; (wide_q, strata_k, strata_v) are as wide as `fold_bias` makes them.
    """

    @staticmethod
    def forward(ctx, q, k, v, wide_q, strata_k, strata_v, windows, samples, scale):
        near, near_lse = _forward(q, k, v, windows, scale)
        far, far_lse = _forward(wide_q, strata_k, strata_v, samples, scale)

        lse = torch.logaddexp(near_lse, far_lse)  # [H, N]
        near_part = (near_lse - lse).exp().T.unsqueeze(-1)  # [N, H, 1]
        far_part = (far_lse - lse).exp().T.unsqueeze(-1)
        out = (near * near_part + far[..., : q.shape[-1]] * far_part).to(q.dtype)

        ctx.save_for_backward(q, k, v, wide_q, strata_k, strata_v, out, lse)
        ctx.rest = windows, samples, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, wide_q, strata_k, strata_v, out, lse = ctx.saved_tensors
        windows, samples, scale = ctx.rest
        grad = grad.contiguous()
        near = _backward(grad, q, k, v, out, lse, windows, scale)

        added = (0, wide_q.shape[-1] - q.shape[-1])
        grad = torch.nn.functional.pad(grad, added)
        out = torch.nn.functional.pad(out, added)
        far = _backward(grad, wide_q, strata_k, strata_v, out, lse, samples, scale)
        return (*near, *far, None, None, None)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, where: Sequences, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [N, H, D] and the log-sum-exp [H, N] in fp32."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    out, lse = varlen_attn(q, k, v, *where, scale=scale, return_aux=AuxRequest(lse=True))
    return out, lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    where: Sequences,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v.

    out and lse belong to the whole softmax, of which these keys may be a part.
    """
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of the dropout, which is off
    unused = torch.empty(0, device=q.device)
    dropout, causal = 0.0, False
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, *where, dropout, causal, state, unused, scale=scale
    )
