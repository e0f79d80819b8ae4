# nuScenes with 10 sweeps, class-balanced resampling and ground-truth sampling.
_base_ = 'mmdet3d::_base_/datasets/nus-3d.py'

point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
# labels count the classes in the order of the head's tasks
tasks = [
    ['car'],
    ['truck', 'construction_vehicle'],
    ['bus', 'trailer'],
    ['barrier'],
    ['motorcycle', 'bicycle'],
    ['pedestrian', 'traffic_cone'],
]
class_names = [name for names in tasks for name in names]
metainfo = dict(classes=class_names)
# one place for all of it: NUSCENES_ROOT=/datasets/nuscenes python tools/train.py ...
data_root = '{{$NUSCENES_ROOT:data/nuscenes}}'

load_points = [
    dict(type='LoadKeyframe', coord_type='LIDAR', load_dim=5, use_dim=5),
    # the nearest nine, aligned; mmdet3d's own loader misplaces them and draws them at random
    dict(
        type='LoadAlignedSweeps',
        sweeps_num=9,
        use_dim=[0, 1, 2, 3, 4],
        remove_close=True,
        test_mode=True,
    ),
]
db_sampler = dict(
    type='GroundTruthSampler',
    data_root=data_root,
    info_path=f'{data_root}/nuscenes_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict.fromkeys(class_names, 5)),
    classes=class_names,
    sample_groups=dict(
        car=2,
        truck=3,
        construction_vehicle=7,
        bus=4,
        trailer=6,
        barrier=2,
        motorcycle=6,
        bicycle=6,
        pedestrian=2,
        traffic_cone=2,
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
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.5],
    ),
    dict(
        type='RandomFlip3D',
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    *load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points']),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ClassBalancedFrames',
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
    ),
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='NuScenesDevkitMetric',
    classes=class_names,
    data_root=data_root,
    ann_file=f'{data_root}/nuscenes_infos_val.pkl',
)
test_evaluator = val_evaluator
# the last epochs see frames as they are
custom_hooks = [dict(type='FadeObjectSampleHook', epochs=4)]
