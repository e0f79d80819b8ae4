"""A simulated nuScenes: a LiDAR world in true nuScenes format, on numpy and numba alone."""

from .dataset import Settings, simulate_dataset
from .frame import simulate_frame
from .layouts import LAYOUTS

__all__ = ['LAYOUTS', 'Settings', 'simulate_dataset', 'simulate_frame']
