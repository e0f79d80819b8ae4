"""Registers the zoo's mixers in mmdet3d; configs name this module in `custom_imports`."""

from mmdet3d.registry import MODELS

from projects.attention_zoo import OTHER_FUNCTION, SAME_FUNCTION

for mixer in SAME_FUNCTION + OTHER_FUNCTION:
    MODELS.register_module(module=mixer)
