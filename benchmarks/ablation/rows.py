"""The rows of the ablation: each has the settings in which it differs from the default."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from mmengine.config import Config

from benchmarks.ablation.baselines import (
    centerpoint_pillar,
    centerpoint_pillar_coarse,
    centerpoint_voxel,
)
from benchmarks.ablation.full_size import CHANGES
from benchmarks.ablation.recipes import (
    full_augmentation,
    one_sweep,
    plain_backbone,
    remember_sweeps,
    separable_backbone,
    use_sweeps,
    with_turns,
    without_flips,
    without_sampling,
)
from projects.attention_zoo import (
    OTHER_FUNCTION,
    AxialAttention,
    FactorizedAttention,
    PlaneAttention,
    VaryingWindowAttention,
)

# mixers whose three axes or ratios share the heads
THREE_SHARES = (PlaneAttention, AxialAttention, VaryingWindowAttention, FactorizedAttention)
LEARNING_RATES = (5e-4, 1e-3, 3e-3)


class Row(NamedTuple):
    """A variant of the default.

    group: the question it answers; options: dotted settings of the config; change: edits that no
    option can express; equal_time: it trains for as long as the default, not for as many steps.
    """

    name: str
    group: str
    options: dict[str, Any]
    change: Callable[[Config], None] | None = None
    equal_time: bool = False

    def apply(self, config: Config) -> None:
        """Change the default's config to this row's."""
        if self.change is not None:
            self.change(config)
        config.merge_from_dict(self.options)


def _encoder(name: str, group: str, **settings: Any) -> Row:
    return Row(name, group, {f'model.encoder.{key}': value for key, value in settings.items()})


def _mixer(name: str, group: str, **settings: Any) -> Row:
    options = {f'model.encoder.mixer.{key}': value for key, value in settings.items()}
    return Row(name, group, options)


def _one_stage(size: int = 12, depth: int = 2) -> dict[str, Any]:
    return {'stages': [dict(depth=depth, window_shape=(8, size, size), stride=(8, 1, 1))]}


def _tokens() -> list[Row]:
    """Options of the tokens, which are all read from the start, but for one."""
    topk: dict[str, Any] = dict(selection='topk')
    variants: dict[str, dict[str, Any]] = {
        'collect log n': dict(collect_scale=0.43),
        'tokens mix': dict(token_mixing=True),
        'farthest': dict(selection='farthest'),
        'topk': topk,
        'topk, one per window': dict(**topk, max_per_window=1),
        'all token options': dict(**topk, collect_scale=0.43, token_mixing=True),
    }
    rows = []
    for name, settings in variants.items():
        rows.append(_mixer(name, 'tokens', strata_offset=0.0, **settings))
    # the loss of objectness with tokens that are hardly read: what it brings by itself
    rows.append(_mixer('topk, silent start', 'tokens', **topk))
    learned: dict[str, Any] = dict(fusion='separate', selection='learned')
    rows.append(_mixer('separate', 'tokens', fusion='separate'))
    rows.append(_mixer('separate, learned', 'tokens', **learned))
    rows.append(_mixer('separate, learned, mix', 'tokens', **learned, token_mixing=True))
    return rows


def _bev_parts() -> list[Row]:
    """Other costs of the backbone and the head."""
    wide: dict[str, Any] = {'backbone.channels': (128, 128, 256), 'backbone.out_channels': 64}
    variants: dict[str, dict[str, Any]] = {
        'wide, a branch for each number': {**wide, 'head.joint_branches': False},
        'wide': wide,
        'narrower first stage': {'backbone.channels': (64, 128, 128)},
        'one block a stage': {'backbone.depths': (1, 1, 1)},
        'narrow': {'backbone.channels': (48, 64, 96), 'head.shared_channels': 48},
        'cells of 1.6 m': {'backbone.strides': (4, 2, 2)},
    }
    rows = []
    for name, options in variants.items():
        rows.append(Row(name, 'bev', {f'model.{key}': value for key, value in options.items()}))
    return [*rows, Row('separable convolutions', 'bev', {}, separable_backbone)]


def _headings() -> list[Row]:
    """Other ways to learn the heading, and the velocity."""
    rows = [
        Row('not flipped', 'heading', {}, without_flips),
        Row('objects turned', 'heading', {}, with_turns),
    ]
    raw: dict[str, Any] = {'voxel_encoder.dt_unit': 1.0, 'voxel_encoder.relative_offsets': False}
    variants: dict[str, dict[str, Any]] = {
        'no axis branch': {'head.axis_weight': 0.0, 'head.heading': None},
        'no heading branch': {'head.heading': None},
        'heading of all classes': {'head.heading.classes': None},
        'heading 2': {'head.heading.weight': 2.0},
        'velocity 1': {'head.code_weights': [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]},
        'inputs in meters and seconds': raw,
    }
    for name, options in variants.items():
        settings = {f'model.{key}': value for key, value in options.items()}
        rows.append(Row(name, 'heading', settings))
    return rows


def _memories() -> list[Row]:
    """Earlier frames remembered as tokens; the default stacks the same five sweeps."""
    changes: dict[str, Callable[[Config], None]] = {
        'one sweep': one_sweep,
        'one sweep, memory of 4': partial(remember_sweeps, count=4),
        'one sweep, memory of 4, 0.1 s apart': partial(remember_sweeps, count=4, every=2),
        'five sweeps, 0.1 s apart': partial(use_sweeps, count=4, every=2),
    }
    return [Row(name, 'memory', {}, change) for name, change in changes.items()]


def _mixers() -> list[Row]:
    """The attention zoo, except for those that would repeat the default at another speed."""
    rows = []
    for kind in OTHER_FUNCTION:
        name = kind.__name__
        options: dict[str, Any] = dict(mixer=dict(_delete_=True, type=name))
        if kind in THREE_SHARES:
            name = f'{name}, 4 heads'
            options['num_heads'] = 4
        rows.append(_encoder(name, 'mixer', **options))

    # the authors' windows for nuScenes, and for Waymo
    for name, size, settings in (
        ('SetAttention', 30, dict(set_size=90)),
        ('LinearWindowAttention', 20, {}),
        ('EqualGroupAttention', 13, {}),
    ):
        mixer = dict(_delete_=True, type=name, **settings)
        rows.append(_encoder(f'{name}, window {size}', 'mixer', mixer=mixer, **_one_stage(size)))
    return rows


def _detectors() -> list[Row]:
    """CenterPoint at several learning rates."""
    changes = {
        'CenterPoint pillar 0.2': centerpoint_pillar,
        'CenterPoint pillar 0.4': centerpoint_pillar_coarse,
        'CenterPoint voxel 0.1': centerpoint_voxel,
    }
    rows = []
    for name, change in changes.items():
        for rate in LEARNING_RATES:
            options = {'optim_wrapper.optimizer.lr': rate, 'param_scheduler.0.eta_max': rate}
            rows.append(Row(f'{name}, rate {rate:g}', 'detector', options, change, equal_time=True))
    return rows


ROWS = [
    Row('default', 'default', {}),
    _mixer('m = 0', 'strata', num_strata=0),
    _mixer('m = 16', 'strata', num_strata=16),
    _mixer('m = 128', 'strata', num_strata=128),
    _mixer('random', 'selection', selection='random'),
    _mixer('first', 'selection', selection='first'),
    _mixer('gated', 'fusion', fusion='gated'),
    _mixer('no bias', 'bias', strata_offset=None),
    # all tokens together start with the weight of one voxel
    _mixer('offset 0', 'bias', strata_offset=0.0),
    *_tokens(),
    _encoder('window 24', 'window', **_one_stage(24)),
    # one block each: neither is shifted
    _encoder(
        'window 12, then 24',
        'window',
        stages=[
            dict(depth=1, window_shape=(8, 12, 12), stride=(1, 1, 1)),
            dict(depth=1, window_shape=(8, 24, 24), stride=(8, 1, 1)),
        ],
    ),
    _encoder('4 blocks', 'depth', **_one_stage(depth=4)),
    _encoder('4 blocks, m = 0', 'depth', **_one_stage(depth=4), **{'mixer.num_strata': 0}),
    _encoder('not shifted', 'shift', shifted=False),
    _encoder('no rotary', 'position', use_rotary=False),
    _encoder('no convolution', 'position', use_conv=False),
    # what the full-size configs set otherwise than the quickstart, and parts that all have
    Row(
        'IoU branch and loss',
        'recipe',
        {'model.head.iou_weight': 0.5, 'model.head.iou_loss_weight': 0.5},
    ),
    Row('boxes at centers only', 'recipe', {'model.head.box_radius': 0}),
    _encoder('stem of 2', 'recipe', stem_depth=2),
    Row('plain backbone', 'recipe', {}, plain_backbone),
    # the default's are bf16 where the device has matrix units for it
    Row('maps in fp32', 'recipe', {'model.bev_dtype': 'fp32'}),
    Row(
        'constant rate of 0.001',
        'schedule',
        {'param_scheduler': [], 'optim_wrapper.optimizer.lr': 1e-3},
    ),
    Row('no ground-truth sampling', 'data', {}, without_sampling),
    # in the last of the three passes that 240 steps make over the data
    Row('sampling fades', 'data', {'custom_hooks': [dict(type='FadeObjectSampleHook', epochs=1)]}),
    Row('full-size augmentation', 'data', {}, full_augmentation),
    *_bev_parts(),
    *_headings(),
    *_memories(),
    *_mixers(),
    *(Row(name, 'configs', {}, change) for name, change in CHANGES.items()),
    *_detectors(),
]
