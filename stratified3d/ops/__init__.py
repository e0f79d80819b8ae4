"""Operations on sparse voxels: tensors in, tensors out. They need torch alone."""

from stratified3d.ops.nms import circle_nms, rotated_intersection, rotated_iou, rotated_nms
from stratified3d.ops.rotary import apply_rotary, rotary_angles
from stratified3d.ops.segments import (
    chunk_offsets,
    segment_broadcast,
    segment_ids,
    segment_reduce,
    segment_softmax,
)
from stratified3d.ops.strata_pooling import (
    farthest_strata,
    pool_strata,
    sample_strata,
    top_strata,
)
from stratified3d.ops.stratified_attention import (
    Backend,
    choose_backend,
    collect_strata,
    read_strata,
    stratified_attention,
    unsupported_reason,
)
from stratified3d.ops.voxelize import Voxels, grid_shape, voxel_centers, voxelize
from stratified3d.ops.windows import WindowPlan, permute_rows, plan_windows

__all__ = [
    'Backend',
    'Voxels',
    'WindowPlan',
    'apply_rotary',
    'choose_backend',
    'chunk_offsets',
    'circle_nms',
    'collect_strata',
    'farthest_strata',
    'grid_shape',
    'permute_rows',
    'plan_windows',
    'pool_strata',
    'read_strata',
    'rotary_angles',
    'rotated_intersection',
    'rotated_iou',
    'rotated_nms',
    'sample_strata',
    'segment_broadcast',
    'segment_ids',
    'segment_reduce',
    'segment_softmax',
    'stratified_attention',
    'top_strata',
    'unsupported_reason',
    'voxel_centers',
    'voxelize',
]
