"""What all mixers of the zoo share: settings with their authors' values, projections, strata where
they have any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from stratified3d.layers.attention import StratifiedAttention, WindowGrid, project_rows
from stratified3d.layers.strata import Strata


class Tunable(nn.Module):
    """Settings of a baseline, kept as attributes.

    authors: every setting and the value its authors (or their code) take by default; tried: further
    values that the benchmarks try beside it.
    """

    authors: ClassVar[dict[str, Any]] = {}
    tried: ClassVar[tuple[dict[str, Any], ...]] = ()

    def take_settings(self, settings: dict[str, Any]) -> None:
        for name in settings:
            if name not in self.authors:
                raise ValueError(
                    f'{type(self).__name__} has no setting {name!r}; it has '
                    f'{", ".join(self.authors) or "none"}'
                )
        self.settings = {**self.authors, **settings}
        for name, value in self.settings.items():
            setattr(self, name, value)

    def prepared(self, grid: WindowGrid, *details: Any) -> Any:
        """What `prepare` makes of the grid and further details: made once and shared by all blocks
        that prepare alike."""
        key = (
            type(self),
            *(f'{name}={value}' for name, value in self.settings.items()),
            self.variant,
            *details,
        )
        return grid.once(key, lambda: self.prepare(grid, *details))

    # what makes two blocks of the same settings prepare differently
    variant: Any = None

    def prepare(self, grid: WindowGrid, *details: Any) -> Any:
        """Index tensors that depend on the voxels' places only."""
        raise NotImplementedError

    def unsupported_reason(self, q: Tensor) -> str | None:
        """Why such queries [N, H, D] cannot be served, or None."""
        return None

    def extra_repr(self) -> str:
        return ', '.join(f'{name}={value!r}' for name, value in self.settings.items())


class Baseline(Tunable):
    """A mixer that computes another function than stratified attention, and knows no strata.

    Positions enter every baseline alike, by the block's rotary embedding of q and k (and by its
    convolution), unless the equation of its attention has a term of its own for them.

    Args:
        channels: C.
        num_heads: H, divides C.
        use_rotary: rotary position embedding of q and k in meters.
        block: index of the block in its stage; where a baseline alternates, odd blocks differ.
        window_shape: (z, y, x) in voxels of the stage, for baselines whose parameters depend on it.
        settings: of the baseline, see `authors` of its class.
    Raises:
        ValueError: heads that do not divide the width, an unknown setting.
    """

    # whether q and k come to `attend` with their rotary embedding
    takes_rotated = True

    def __init__(
        self,
        channels: int,
        num_heads: int,
        use_rotary: bool = True,
        block: int = 0,
        window_shape: Sequence[int] | None = None,
        **settings: Any,
    ):
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'{num_heads} heads do not divide {channels} channels')
        self.num_heads, self.head_dim, self.use_rotary = (
            num_heads,
            channels // num_heads,
            use_rotary,
        )
        self.block, self.window_shape = block, window_shape
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.take_settings(settings)
        self.build()

    def build(self) -> None:
        """Parameters and checks of a baseline's own."""

    def forward(
        self, x: Tensor, grid: WindowGrid, strata: Strata | None = None
    ) -> tuple[Tensor, None]:
        """x [N, C] in the order of the voxels -> mixed [N, C] in the same order, and None: there
        are no strata."""
        rotary = grid.rotary if self.use_rotary and self.takes_rotated else None
        q, k, v = project_rows(self.qkv, grid.into_windows(x), self.num_heads, rotary)  # [N, H, D]
        mixed = self.attend(q, k, v, grid)
        return self.out(grid.into_voxels(mixed.flatten(1))), None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        """q, k, v [N, H, D] in the grid's window order -> [N, H, D]."""
        raise NotImplementedError


class JointBaseline(Tunable, StratifiedAttention):
    """Stratified attention whose softmax over window and strata runs in another layout or library.

    Same parameters and same function as `StratifiedAttention`, whose arguments it takes (but
    `backend`).

    Args:
        settings: of the baseline, see `authors` of its class.
    Raises:
        ValueError: what `StratifiedAttention` refuses, an unknown setting.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_strata: int = 64,
        selection: str = 'pool',
        fusion: str = 'joint',
        creates_tokens: bool = True,
        strata_offset: float | None = -4.0,
        use_rotary: bool = True,
        **settings: Any,
    ):
        StratifiedAttention.__init__(
            self,
            channels,
            num_heads,
            num_strata,
            selection,
            fusion,
            creates_tokens,
            strata_offset,
            use_rotary,
        )
        self.take_settings(settings)

    def extra_repr(self) -> str:
        return f'{StratifiedAttention.extra_repr(self)}, {Tunable.extra_repr(self)}'
