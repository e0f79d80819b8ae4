"""Building blocks as plain nn.Modules: no registry, no OpenMMLab."""
