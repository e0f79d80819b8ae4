_base_ = ['./quickstart.py']

# the weights to begin with: simulated scenes of many sensors, mounts and streets, frames of one
# sweep and of five, and little time spent on what does not carry over
data_root = '{{$PRETRAIN_ROOT:data/simulated_mixed}}'
db_sampler = dict(
    _base_.db_sampler, data_root=data_root, info_path=f'{data_root}/nuscenes_dbinfos_train.pkl'
)
train_pipeline = [
    *_base_.load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='FindGroundPlane'),
    dict(type='ObjectSample', db_sampler=db_sampler, use_ground_plane=True),
    dict(type='DropSweeps', prob=0.5),
    dict(type='RoughenGround', prob=0.7),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.6, 0.6],
        scale_ratio_range=[0.92, 1.08],
        translation_std=[0, 0, 0.15],
    ),
    dict(
        type='RandomFlip3D',
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
    dict(type='TiltGround', degrees=1.0),
    dict(type='VaryIntensity', log_gain=0.4, gamma=(0.6, 1.3), missing=0.1, zeros=0.25),
    _base_.in_range,
    dict(type='ObjectRangeFilter', point_cloud_range=_base_.point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
    dict(type='ThinFrame', prob=0.15),
    dict(type='KeepSector', prob=0.1),
    dict(type='BareGround', prob=0.04),
    dict(type='ThinNearPoints', max_points=70000, radius=20.0),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=train_pipeline,
        metainfo=dict(version='v1.0-trainval'),
        filter_empty_gt=False,
    )
)
model = dict(head=dict(code_weights=[2, 2, 1, 1, 1, 1, 1, 1, 0.2, 0.2]))
epochs = 9
param_scheduler = [dict(_base_.param_scheduler[0], total_steps=epochs)]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
