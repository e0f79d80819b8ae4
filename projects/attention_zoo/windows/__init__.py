"""Every voxel attends to the voxels of its part of space, or of its place in an order."""
