"""Training and testing: a runner that is safe to kill, and hooks."""

from stratified3d.engine.fading import FadeObjectSampleHook
from stratified3d.engine.finish_time import FinishTimeHook
from stratified3d.engine.host_memory import HostMemoryHook
from stratified3d.engine.runner import StratifiedRunner
from stratified3d.engine.seeding import EpochSeedHook

__all__ = [
    'EpochSeedHook',
    'FadeObjectSampleHook',
    'FinishTimeHook',
    'HostMemoryHook',
    'StratifiedRunner',
]
