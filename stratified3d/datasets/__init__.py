"""Reading data, and the transforms, samplers and hooks registered in mmdet3d."""
