_base_ = ['./stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py']

# the head of most baselines on nuScenes: one set of 200 queries for all classes, with the same IoU
# branch and loss
model = dict(
    head=dict(
        _delete_=True,
        type='StratifiedTransFusionHead',
        tasks=[_base_.class_names],
        num_proposals=200,
        small_classes=['pedestrian', 'traffic_cone'],
        iou_weight=0.5,
        iou_power=0.5,
        iou_loss_weight=0.5,
    )
)
