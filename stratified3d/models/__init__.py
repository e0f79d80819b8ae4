"""The detector's parts, registered in mmdet3d's registries."""

from stratified3d.models.bev_backbone import ResidualBEVBackbone
from stratified3d.models.detector import StratifiedCenterPoint
from stratified3d.models.heads.center import StratifiedCenterHead
from stratified3d.models.heads.transfusion import StratifiedTransFusionHead
from stratified3d.models.stratified_encoder import StratifiedEncoder
from stratified3d.models.voxel_encoder import DynamicVoxelEncoder

__all__ = [
    'DynamicVoxelEncoder',
    'ResidualBEVBackbone',
    'StratifiedCenterHead',
    'StratifiedCenterPoint',
    'StratifiedEncoder',
    'StratifiedTransFusionHead',
]
