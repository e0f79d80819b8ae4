"""Base classes of the zoo's mixers: settings, projections and plans that blocks share."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from stratified3d.layers.attention import MixerContext, StratifiedAttention, project_rows
from stratified3d.layers.strata import Strata
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import apply_rotary


class Configurable(nn.Module):
    """A module that keeps its settings as attributes of the same names.

    A subclass declares the type of every setting (`set_size: int`) and its value in `defaults`.

    Attributes:
        defaults: every setting, with the value that its authors (or their code) use.
        variants: further settings that the benchmarks run as well.
        phase: which of its forms a block takes where a mixer alternates from block to block. Blocks
            with the same settings and the same phase share what they prepare.
        own_block: the first block that takes the form that the mixer does not share with others;
            benchmarks measure it.
        settings: `defaults` with the settings that were given.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    phase: int = 0
    own_block: ClassVar[int] = 0

    def take_settings(self, settings: dict[str, Any]) -> None:
        """Set the attributes; raise ValueError for a setting that the class does not have."""
        for name in settings:
            if name not in self.defaults:
                known = ', '.join(self.defaults) or 'none'
                raise ValueError(f'{type(self).__name__} has no setting {name!r}; it has {known}')

        self.settings = {**self.defaults, **settings}
        for name, value in self.settings.items():
            setattr(self, name, value)

    def build(self) -> None:
        """Check the settings and add the parameters that only this mixer has."""

    def prepared(self, grid: WindowGrid, *details: Any) -> Any:
        """Return `prepare(grid, *details)`, computed once for all blocks that prepare the same."""
        settings = (f'{name}={value}' for name, value in self.settings.items())
        key = (type(self), *settings, self.phase, *details)
        return grid.once(key, lambda: self.prepare(grid, *details))

    def prepare(self, grid: WindowGrid, *details: Any) -> Any:
        """Compute index tensors that depend on the coordinates of the voxels only."""
        raise NotImplementedError

    def check_at_least(self, least: int, *names: str) -> None:
        """Raise ValueError where one of these settings is below `least`."""
        for name in names:
            value = getattr(self, name)
            if value < least:
                raise ValueError(f'{name} is {least} or more, not {value}')

    def check_ascending(self, name: str) -> None:
        """Raise ValueError where a setting is not a list of ascending numbers above 0."""
        values = list(getattr(self, name))
        if not values or values[0] < 1 or values != sorted(set(values)):
            raise ValueError(f'{name} is one or more ascending numbers from 1 on, not {values}')

    def unsupported_reason(self, q: Tensor) -> str | None:
        """Return why queries like q [N, H, D] are not supported, or None."""
        return None

    def extra_repr(self) -> str:
        return ', '.join(f'{name}={value!r}' for name, value in self.settings.items())


class Baseline(Configurable):
    """A mixer that computes another function than stratified attention, without strata tokens.

    Positions enter all baselines in the same way, through the block's rotary embedding of q and k
    and through its convolution, unless the equation of the attention has its own position term.

    Args:
        context: where the mixer stands; a baseline that alternates reads the block's index from it.
        settings: see `defaults` of the class.
    Raises:
        ValueError: heads that do not divide the width, an unknown setting.
    """

    # whether `attend` receives q and k with their rotary embedding
    takes_rotated = True

    def __init__(self, context: MixerContext, **settings: Any):
        super().__init__()
        context.check()
        self.num_heads = context.num_heads
        self.head_dim = context.head_dim
        self.use_rotary = context.use_rotary
        self.window_shape = context.window_shape
        self.block = context.block

        self.qkv = nn.Linear(context.channels, 3 * context.channels)
        self.out = nn.Linear(context.channels, context.channels)
        self.take_settings(settings)
        self.build()

    def forward(
        self, x: Tensor, grid: WindowGrid, strata: Strata | None = None
    ) -> tuple[Tensor, None]:
        """Mix x [N, C] in the order of the voxels; there are no strata tokens to return."""
        rotary = grid.rotary if self.use_rotary and self.takes_rotated else None
        q, k, v = project_rows(self.qkv, grid.into_windows(x), self.num_heads, rotary)  # [N, H, D]
        mixed = self.attend(q, k, v, grid)
        return self.out(grid.into_voxels(mixed.flatten(1))), None

    def rotate(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Rotate x [..., H, D] with the tables of its rows if the model has rotary embedding."""
        if not self.use_rotary:
            return x
        assert rotary is not None  # the stage tabulates it where use_rotary is set
        return apply_rotary(x, *rotary)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        """Attend with q, k, v [N, H, D] in the grid's window order; returns [N, H, D]."""
        raise NotImplementedError


class JointBaseline(Configurable, StratifiedAttention):
    """Stratified attention whose joint softmax runs in another memory layout or library.

    It has the parameters of `StratifiedAttention` and computes the same function.

    Args:
        context: where the mixer stands.
        num_strata, selection, fusion, carry_tokens, strata_offset: see `StratifiedAttention`.
        settings: see `defaults` of the class.
    Raises:
        ValueError: what `StratifiedAttention` refuses, an unknown setting.
    """

    def __init__(
        self,
        context: MixerContext,
        *,
        num_strata: int = 64,
        selection: str = 'pool',
        fusion: str = 'joint',
        carry_tokens: bool = True,
        strata_offset: float | None = -4.0,
        **settings: Any,
    ):
        StratifiedAttention.__init__(
            self,
            context,
            num_strata=num_strata,
            selection=selection,
            fusion=fusion,
            carry_tokens=carry_tokens,
            strata_offset=strata_offset,
        )
        self.take_settings(settings)
        self.build()

    def extra_repr(self) -> str:
        return f'{StratifiedAttention.extra_repr(self)}, {Configurable.extra_repr(self)}'
