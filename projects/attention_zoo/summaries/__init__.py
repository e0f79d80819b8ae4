"""Every voxel reads from summaries of many voxels: means, latents, states."""
