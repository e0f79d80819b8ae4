"""torch's variable-length attention over windows and over strata, merged through the
log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from projects.attention_zoo.groups import fold_bias, window_rows
from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.attention import WindowGrid


class Sequences(NamedTuple):
    """offsets_q, offsets_k [S + 1] int32 of the sequences' queries and keys; longest_q, longest_k:
    host numbers."""

    offsets_q: Tensor
    offsets_k: Tensor
    longest_q: int
    longest_k: int


def _forward(
    q: Tensor, k: Tensor, v: Tensor, where: Sequences, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [N, H, D] and log-sum-exp [H, N] fp32."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    return varlen_attn(q, k, v, *where, scale=scale, return_aux=AuxRequest(lse=True))


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
    """Gradients of q, k, v from the output and log-sum-exp of the whole softmax, of which these
    keys are a part."""
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout that there is not
    return torch.ops.aten._flash_attention_backward(
        grad,
        q,
        k,
        v,
        out,
        lse,
        *where,
        0.0,
        False,
        state,
        torch.empty(0, device=q.device),
        scale=scale,
    )


class _Joint(torch.autograd.Function):
    """One softmax over two sets of keys: (q, k, v) in windows and (wide_q, strata_k, strata_v) in
    samples."""

    @staticmethod
    def forward(ctx, q, k, v, wide_q, strata_k, strata_v, windows, samples, scale):
        near, near_lse = _forward(q, k, v, windows, scale)
        far, far_lse = _forward(wide_q, strata_k, strata_v, samples, scale)
        lse = torch.logaddexp(near_lse, far_lse)
        near_part, far_part = ((x - lse).exp().T.unsqueeze(-1) for x in (near_lse, far_lse))
        out = (near * near_part + far[..., : q.shape[-1]] * far_part).to(q.dtype)
        ctx.save_for_backward(q, k, v, wide_q, strata_k, strata_v, out, lse)
        ctx.rest = windows, samples, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, wide_q, strata_k, strata_v, out, lse = ctx.saved_tensors
        windows, samples, scale = ctx.rest
        grad, wider = grad.contiguous(), (0, wide_q.shape[-1] - q.shape[-1])
        near = _backward(grad, q, k, v, out, lse, windows, scale)
        grad, out = (torch.nn.functional.pad(x, wider) for x in (grad, out))
        far = _backward(grad, wide_q, strata_k, strata_v, out, lse, samples, scale)
        return (*near, *far, None, None, None)


class VarlenAttention(JointBaseline):
    """Windows as sequences of torch.nn.attention.varlen, and strata as those of another call,
    merged exactly; their bias is a column of their keys. Heads grow to a multiple of `width` for
    the strata; `as_one` hands strata over as keys of the windows instead, copied to each of them,
    in a single call.

    The library's flash kernel (Dao 2023) takes fp16 and bf16 on a GPU only; another dtype is an
    error.
    """

    defaults = dict(as_one=False, width=8)
    variants = (dict(width=32), dict(as_one=True))

    def unsupported_reason(self, q: Tensor) -> str | None:
        if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
            return None
        return (
            f'torch.nn.attention.varlen runs on CUDA in fp16 and bf16 only, not on {q.device.type} in '
            f'{str(q.dtype)[6:]}: train with --amp on a GPU, or take another mixer'
        )

    def prepare(self, grid: WindowGrid) -> tuple[Sequences, Sequences, Tensor]:
        """Windows; samples with their strata; and, for `as_one`, the order of rows followed by
        strata tokens."""
        windows, sample = window_rows(grid.plan)
        batch, strata = len(grid.plan.batch_offsets) - 1, self.num_strata
        tokens = torch.arange(batch + 1, device=sample.device, dtype=torch.int32) * strata
        offsets = windows.offsets.int()
        longest = int(offsets.diff().max()) if len(sample) else 0
        samples = Sequences(
            grid.plan.batch_offsets, tokens, int(grid.plan.batch_offsets.diff().max()), strata
        )
        if not self.as_one:
            return Sequences(offsets, offsets, longest, longest), samples, windows.rows
        rows = torch.cat(
            [
                windows.rows,
                (
                    len(windows.rows)
                    + sample[:, None] * strata
                    + torch.arange(strata, device=sample.device)
                ).flatten(),
            ]
        )
        owner = torch.arange(len(sample), device=sample.device)
        owner = torch.cat(
            [owner.repeat_interleave(windows.offsets.diff()), owner.repeat_interleave(strata)]
        )
        steps = torch.arange(len(offsets), device=sample.device, dtype=torch.int32) * strata
        return (
            Sequences(offsets, offsets + steps, longest, longest + strata),
            samples,
            rows[owner.argsort(stable=True)],
        )

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
        (windows, samples, rows), scale = self.prepared(grid), q.shape[-1] ** -0.5
        if strata_k is None:
            own = windows._replace(offsets_k=windows.offsets_q, longest_k=windows.longest_q)
            return _Alone.apply(q, k, v, own, scale)
        wide_q, wide_k, wide_v, strata_k, strata_v = fold_bias(
            q, k, v, strata_k, strata_v, strata_bias, self.width
        )
        strata_k, strata_v = strata_k.flatten(0, 1), strata_v.flatten(0, 1)
        if self.as_one:
            keys, values = (
                torch.cat(x).index_select(0, rows) for x in ((wide_k, strata_k), (wide_v, strata_v))
            )
            return _Alone.apply(wide_q, keys, values, windows, scale)[..., : q.shape[-1]]
        return _Joint.apply(q, k, v, wide_q, strata_k, strata_v, windows, samples, scale)


class _Alone(torch.autograd.Function):
    """One call, with its backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, where, scale):
        out, lse = _forward(q, k, v, where, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = where, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return (*_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.rest), None, None)
