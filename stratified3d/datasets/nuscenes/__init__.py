"""Datasets in nuScenes format: info files, ground-truth database, single frames."""
