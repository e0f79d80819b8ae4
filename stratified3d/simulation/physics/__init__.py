"""Geometry and motion: primitives, paths, rays, materials and the LiDAR that measures them."""
