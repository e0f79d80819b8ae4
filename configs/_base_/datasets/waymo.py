# Waymo as tools/waymo_convert.py writes it: single frames of all five LiDARs, three classes, no
# velocity.
sensor = 'waymo'  # the frame of its points, see stratified3d/sensors.py
point_cloud_range = [-74.88, -74.88, -2.0, 74.88, 74.88, 4.0]
tasks = [['Car', 'Pedestrian', 'Cyclist']]
class_names = [name for names in tasks for name in names]
metainfo = dict(classes=class_names)
# one place for all of it: WAYMO_ROOT=/datasets/waymo python tools/train.py ...
data_root = '{{$WAYMO_ROOT:data/waymo}}'

# x, y, z, intensity, elongation; the intensity is unbounded
load_points = [
    dict(type='LoadKeyframe', coord_type='LIDAR', load_dim=6, use_dim=5, norm_intensity=True)
]
db_sampler = dict(
    type='GroundTruthSampler',
    data_root=data_root,
    info_path=f'{data_root}/waymo_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(
        filter_by_difficulty=[-1], filter_by_min_points=dict(Car=5, Pedestrian=10, Cyclist=10)
    ),
    classes=class_names,
    sample_groups=dict(Car=15, Pedestrian=10, Cyclist=10),
    points_loader=dict(
        type='LoadPointsFromFile', coord_type='LIDAR', load_dim=6, use_dim=5, norm_intensity=True
    ),
)
train_pipeline = [
    *load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='ObjectSample', db_sampler=db_sampler),
    dict(
        type='RandomFlip3D',
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0.5, 0.5, 0.2],
    ),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    *load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    # a frame of the metric is a segment and a time
    dict(
        type='Pack3DDetInputs',
        keys=['points'],
        meta_keys=[
            'box_type_3d',
            'sample_idx',
            'context_name',
            'timestamp',
            'lidar_path',
            'num_pts_feats',
        ],
    ),
]
frames = dict(
    type='WaymoDataset',
    data_root=data_root,
    metainfo=metainfo,
    modality=dict(use_lidar=True, use_camera=False),
    box_type_3d='LiDAR',
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **frames,
        ann_file='waymo_infos_train.pkl',
        data_prefix=dict(pts='training', sweeps='training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **frames,
        ann_file='waymo_infos_val.pkl',
        data_prefix=dict(pts='validation', sweeps='validation'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='WaymoLevelMetric', ann_file=f'{data_root}/waymo_infos_val.pkl')
test_evaluator = val_evaluator
