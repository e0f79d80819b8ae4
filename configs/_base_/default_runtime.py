_base_ = 'mmdet3d::_base_/default_runtime.py'

# registers the plugin's parts in mmdet3d, before anything is built
custom_imports = dict(imports=['stratified3d.plugin'], allow_failed_imports=False)
# a run may be killed at any moment and resumed: docs/robustness.md
runner_type = 'StratifiedRunner'
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3),
    epoch_seed=dict(type='EpochSeedHook'),
    host_memory=dict(type='HostMemoryHook'),
    finish_time=dict(type='FinishTimeHook'),
    # mmdet3d's own needs a display
    visualization=dict(type='DetectionPictureHook'),
)
