"""Detectors as one file that runs without OpenMMLab: `load` runs what an export wrote."""

from stratified3d.deploy.package import PackagedDetector, load, read_info

__all__ = ['PackagedDetector', 'load', 'read_info']
