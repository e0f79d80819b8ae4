_base_ = './cyclic_20e.py'

# the same cycle over 24 epochs: 10 up, 14 down
param_scheduler = [
    dict(
        type=kind,
        T_max=last - first,
        eta_min=end,
        begin=first,
        end=last,
        by_epoch=True,
        convert_to_iter_based=True,
    )
    for kind, first, last, end in (
        ('CosineAnnealingLR', 0, 10, 1e-3),
        ('CosineAnnealingLR', 10, 24, 1e-8),
        ('CosineAnnealingMomentum', 0, 10, 0.85 / 0.95),
        ('CosineAnnealingMomentum', 10, 24, 1),
    )
]
train_cfg = dict(max_epochs=24, val_interval=24)
auto_scale_lr = dict(base_batch_size=16)
