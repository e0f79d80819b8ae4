"""A simulated nuScenes: a LiDAR world in true nuScenes format, on numpy and numba alone."""
from .frame import simulate_frame
from .layouts import LAYOUTS

__all__ = ['LAYOUTS', 'simulate_frame']
