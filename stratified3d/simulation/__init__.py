"""A simulated nuScenes: a LiDAR world in true nuScenes format, on numpy and numba alone."""

from stratified3d.simulation.dataset import Settings, simulate_dataset
from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts import LAYOUTS

__all__ = ['LAYOUTS', 'Settings', 'simulate_dataset', 'simulate_frame']
