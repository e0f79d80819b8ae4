_base_ = ['./pretrained.py']

# the weights in this folder: other scenes, three times as many, half of the frames as a single
# sweep, and streets that climb as real ones do, by up to 6 % mostly, where the simulated ones are
# level
data_root = '{{$PRETRAIN_ROOT:data/simulated_large}}'
db_sampler = dict(
    _base_.db_sampler, data_root=data_root, info_path=f'{data_root}/nuscenes_dbinfos_train.pkl'
)
other = dict(ObjectSample=dict(type='ObjectSample', db_sampler=db_sampler))
train_pipeline = [other.get(t['type'], t) for t in _base_.train_pipeline]
train_pipeline.insert(-2, dict(type='DropSweeps', prob=0.5))
train_pipeline.insert(
    [t['type'] for t in train_pipeline].index('PointsRangeFilter'),
    dict(type='TiltGround', degrees=1.7),
)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, pipeline=train_pipeline, metainfo=dict(version='v1.0-trainval')
    )
)
epochs = 4
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=_base_.lr,
        total_steps=epochs,
        pct_start=0.15,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
