_base_ = ['../../../configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py']

# what to change for a set of one's own; docs/own_data.md
data_root = '{{$CUSTOM_ROOT:data/custom}}'
class_names = ['car', 'pedestrian']
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
# whose frame the converted points are in; without --sensor, the files' own, such as
# dict(forward='x', height=1.73, intensity_max=255.0)
sensor = 'nuscenes'

metainfo = dict(classes=class_names)
load_points = [dict(type='LoadKeyframe', coord_type='LIDAR', load_dim=5, use_dim=5)]
keep_points = [dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range)]
train_pipeline = [
    *load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.2],
    ),
    dict(
        type='RandomFlip3D',
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
    *keep_points,
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [*load_points, *keep_points, dict(type='Pack3DDetInputs', keys=['points'])]
dataset = dict(type='LidarFrames', data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='infos_train.pkl', pipeline=train_pipeline),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='infos_val.pkl', pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type='CenterDistanceMetric', point_cloud_range=point_cloud_range
)
test_evaluator = val_evaluator

model = dict(
    point_cloud_range=point_cloud_range, head=dict(tasks=[class_names], use_velocity=False)
)
