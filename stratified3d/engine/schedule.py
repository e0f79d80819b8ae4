"""Learning-rate schedules that are as long as the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# settings of mmengine's schedulers that count epochs
_EPOCHS = ('begin', 'end', 'T_max', 'total_steps', 'step_size')


def fit_schedule(
    schedulers: Sequence[dict[str, Any]], epochs: int, steps: int
) -> tuple[list[dict[str, Any]], int | None]:
    """Return schedulers that end with the training, and the epochs that they were made for.

    Their epochs are scaled by the same factor. What counts iterations stays as it is, and so does
    everything where a part of the schedule would be shorter than a step.

    Args:
        schedulers: configs of mmengine's parameter schedulers.
        epochs: of the training.
        steps: of an epoch.
    Returns:
        The schedulers, and the epochs they had, or None where they are as before.
    """
    counted = [settings for settings in schedulers if settings.get('by_epoch', True)]
    length = max((_last_epoch(settings) for settings in counted), default=0)
    if length in (0, epochs):
        return list(schedulers), None
    fitted = []
    for settings in schedulers:
        if settings.get('by_epoch', True):
            settings = _scale(settings, epochs / length)
            if not _has_steps(settings, steps):
                return list(schedulers), None
        fitted.append(settings)
    return fitted, length


def _has_steps(settings: dict[str, Any], steps: int) -> bool:
    """Whether a scheduler lasts for a step at least."""
    begin, end = settings.get('begin', 0), settings.get('end')
    return end is None or int(end * steps) > int(begin * steps)


def _last_epoch(settings: dict[str, Any]) -> int:
    """The epoch at which a scheduler ends; 0 where it has no end."""
    begin = settings.get('begin', 0)
    lengths = [begin + settings[name] for name in ('T_max', 'total_steps') if settings.get(name)]
    ends = [settings['end'], *lengths] if settings.get('end') else lengths
    return max([*ends, *settings.get('milestones', ())], default=0)


def _scale(settings: dict[str, Any], factor: float) -> dict[str, Any]:
    """The settings with all epochs multiplied by a factor."""
    is_exact = settings.get('convert_to_iter_based', False)  # then parts of an epoch are possible

    def scale(epoch: int) -> float:
        scaled = round(epoch * factor, 6)
        if scaled.is_integer():
            return int(scaled)
        return scaled if is_exact else max(1, round(scaled))

    scaled = dict(settings)
    for name in _EPOCHS:
        if isinstance(settings.get(name), int):
            scaled[name] = scale(settings[name])
    if 'milestones' in settings:
        scaled['milestones'] = [scale(epoch) for epoch in settings['milestones']]
    return scaled
