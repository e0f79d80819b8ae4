_base_ = ['../../../projects/quickstart/configs/quickstart.py']

# the quickstart's detector and data for three of its eight epochs, counted in steps of two frames
custom_imports = dict(
    imports=[
        'stratified3d.plugin',
        'projects.attention_zoo.register',
        'benchmarks.ablation.recipes',
        'benchmarks.ablation.baselines',
    ],
    allow_failed_imports=False,
)
iterations = 240
param_scheduler = [
    dict(
        type='OneCycleLR', eta_max=_base_.lr, total_steps=iterations, pct_start=0.15, by_epoch=False
    )
]
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations
)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(
        _delete_=True, type='CheckpointHook', by_epoch=False, interval=iterations, max_keep_ckpts=1
    ),
)
log_processor = dict(type='LogProcessor', window_size=10, by_epoch=False)
