_base_ = ['../../../configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py']

# a simulated nuScenes and a short schedule; minutes on two CPU cores
data_root = '{{$NUSCENES_ROOT:data/simulated}}'
metainfo = dict(classes=_base_.class_names, version='v1.0-mini')
load_points = [
    dict(type='LoadKeyframe', coord_type='LIDAR', load_dim=5, use_dim=5),
    dict(
        type='LoadAlignedSweeps',
        sweeps_num=4,
        use_dim=[0, 1, 2, 3, 4],
        remove_close=True,
        test_mode=True,
    ),
]
in_range = dict(type='PointsRangeFilter', point_cloud_range=_base_.point_cloud_range)
# scenes hold many cars and pedestrians already: what is pasted doubles the former and shows the
# rare classes at all
db_sampler = dict(
    type='GroundTruthSampler',
    data_root=data_root,
    info_path=f'{data_root}/nuscenes_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(
        filter_by_difficulty=[-1], filter_by_min_points=dict.fromkeys(_base_.class_names, 5)
    ),
    classes=_base_.class_names,
    sample_groups=dict(
        car=40,
        truck=12,
        construction_vehicle=8,
        bus=8,
        trailer=8,
        barrier=10,
        motorcycle=10,
        bicycle=10,
        pedestrian=5,
        traffic_cone=10,
    ),
    points_loader=dict(
        type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=[0, 1, 2, 3, 4]
    ),
)
train_pipeline = [
    *load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='ObjectSample', db_sampler=db_sampler),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.39, 0.39],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
    ),
    *[
        t
        for t in _base_.train_pipeline
        if t['type']
        in ('RandomFlip3D', 'PointsRangeFilter', 'ObjectRangeFilter', 'ObjectNameFilter')
    ],
    # half of the points within 20 m, where there are more than enough: a step takes a quarter less
    # time
    dict(type='ThinNearPoints', max_points=70000, radius=20.0),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [*load_points, in_range, dict(type='Pack3DDetInputs', keys=['points'])]
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='NuScenesDataset',
        data_root=data_root,
        ann_file='nuscenes_infos_train.pkl',
        pipeline=train_pipeline,
        metainfo=metainfo,
        data_prefix=dict(pts='samples/LIDAR_TOP', img='', sweeps='sweeps/LIDAR_TOP'),
        use_valid_flag=True,
        box_type_3d='LiDAR',
    ),
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=f'{data_root}/nuscenes_infos_val.pkl')
test_evaluator = val_evaluator

# from so few points: people look the same from all sides, and cones and barriers have no front
without_heading = ['pedestrian', 'traffic_cone', 'barrier']
# with this few iterations time is best spent on a wide map and on one stage of meter-high voxels
model = dict(
    voxel_size=(0.4, 0.4, 1.0),
    bev_dtype='auto',
    # inputs of about 1: in so few steps the first layer cannot grow its weights
    voxel_encoder=dict(dt_unit=0.1, relative_offsets=True),
    encoder=dict(stages=[dict(depth=2, window_shape=(8, 12, 12), stride=(8, 1, 1))]),
    backbone=dict(channels=(96, 128, 128), depths=(1, 2, 2), strides=(2, 2, 2), out_channels=32),
    head=dict(
        shared_channels=64,
        box_radius=1,
        iou_weight=0,
        iou_loss_weight=0,
        score_threshold=0.02,
        # where an object is comes first; how fast it moves is hardly learned in this time
        code_weights=[2, 2, 1, 1, 1, 1, 1, 1, 0.1, 0.1],
        # the axis of a box first, then which of its ends is the front
        axis_weight=1.0,
        heading=dict(classes=[name for name in _base_.class_names if name not in without_heading]),
        joint_branches=True,
        nms=dict(type='rotated', iou=0.1),
    ),
)
epochs = 8
lr = 3e-3
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=lr,
        total_steps=epochs,
        pct_start=0.15,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=20))
custom_hooks = []
