"""stratified3d: stratified attention for LiDAR detection, as a plugin for mmdet3d."""

__version__ = '0.1.0'
