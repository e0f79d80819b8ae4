"""Simulated datasets in nuScenes format."""
