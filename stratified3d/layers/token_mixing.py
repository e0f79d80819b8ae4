"""Attention of the strata tokens to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stratified3d.ops import apply_rotary


class TokenMixing(nn.Module):
    """x += self-attention(norm(x)) among the tokens of a sample; x += feed-forward(norm(x)).

    Without it tokens never see each other (compare the latent transformer of Perceiver, Jaegle et
    al. 2021, section 3.1, and the blocks of Set Transformer, Lee et al. 2019, section 3.1). Costs
    O(M^2) per sample, which is little beside the M N of collecting.

    Args:
        channels: C.
        num_heads: H, divides C.
        ffn_ratio: hidden width of the feed-forward over C.
    """

    def __init__(self, channels: int, num_heads: int, ffn_ratio: float = 2.0):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

        hidden = int(channels * ffn_ratio)
        self.ffn = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
        )

    def forward(
        self, feats: Tensor, present: Tensor, rotary: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return the mixed tokens [B, M, C].

        Args:
            feats: [B, M, C].
            present: [B, M] bool; nobody attends to an absent token but itself.
            rotary: (cos, sin) of the tokens, see `rotary_angles`; None does not rotate.
        """
        batch, num, channels = feats.shape
        rows = self.qkv(self.norm(feats))
        rows = rows.view(batch, num, 3 * self.num_heads, channels // self.num_heads)
        qk, v = rows.split((2 * self.num_heads, self.num_heads), 2)
        if rotary is not None:
            qk = apply_rotary(qk, *rotary)
        q, k = qk.chunk(2, 2)

        itself = torch.eye(num, dtype=torch.bool, device=feats.device)
        allowed = present.unsqueeze(1) | itself  # [B, M, M]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, M, D]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed.unsqueeze(1))
        feats = feats + self.out(mixed.transpose(1, 2).flatten(2))
        return feats + self.ffn(feats)
