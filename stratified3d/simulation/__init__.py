"""Simulated LiDAR datasets in nuScenes' format (numpy and numba) and in Waymo's (and pyarrow)."""

from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts.catalog import LAYOUTS
from stratified3d.simulation.nuscenes.dataset import NuScenesSettings, simulate_dataset
from stratified3d.simulation.waymo.dataset import WaymoSettings, simulate_waymo

__all__ = [
    'LAYOUTS',
    'NuScenesSettings',
    'WaymoSettings',
    'simulate_dataset',
    'simulate_frame',
    'simulate_waymo',
]
