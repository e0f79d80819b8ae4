"""A LiDAR world in true nuScenes format, on numpy and numba alone, and in Waymo's, with pyarrow."""

from stratified3d.simulation.dataset import Settings, simulate_dataset
from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts import LAYOUTS
from stratified3d.simulation.waymo_dataset import WaymoSettings, simulate_waymo

__all__ = [
    'LAYOUTS',
    'Settings',
    'WaymoSettings',
    'simulate_dataset',
    'simulate_frame',
    'simulate_waymo',
]
