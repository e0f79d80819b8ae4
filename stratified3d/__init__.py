"""stratified3d: stratified attention for LiDAR detection, as a plugin for mmdet3d."""

from stratified3d.shipped import register_names

__version__ = '0.2.0'

register_names()  # mmengine and mim find configs by `stratified3d::` names from now on
