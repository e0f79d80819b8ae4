"""Registers the zoo's mixers in mmdet3d: `custom_imports = dict(imports=[..., this file])`."""

from mmdet3d.registry import MODELS

from projects.attention_zoo import OTHER_FUNCTION, SAME_FUNCTION

for mixer in SAME_FUNCTION + OTHER_FUNCTION:
    MODELS.register_module(module=mixer)
