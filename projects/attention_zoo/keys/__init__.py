"""Every voxel attends to keys that are chosen for it or for its window."""
