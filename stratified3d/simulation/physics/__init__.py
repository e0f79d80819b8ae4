"""Rays, surfaces, LiDARs and motion."""
