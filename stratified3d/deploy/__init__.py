"""Detectors as one file that runs without OpenMMLab."""
