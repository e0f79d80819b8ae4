"""LiDAR datasets of your own: box tables, info files, the registered dataset."""
