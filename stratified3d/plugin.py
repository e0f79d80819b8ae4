"""What a config imports: `custom_imports = dict(imports=['stratified3d.plugin'])` registers
everything in mmdet3d."""

import sys
from pathlib import Path

import stratified3d.datasets.class_balance
import stratified3d.datasets.ground_truth_sampler
import stratified3d.datasets.lidar_frames
import stratified3d.datasets.sweeps
import stratified3d.datasets.thinning
import stratified3d.datasets.tilting
import stratified3d.engine
import stratified3d.evaluation.centre_metric
import stratified3d.evaluation.nuscenes_metric
import stratified3d.evaluation.waymo_metric
import stratified3d.models
import stratified3d.visualization.hook  # noqa: F401
from stratified3d.checkpoints import register_loader

register_loader()
# in a checkout, configs may name projects.<name>, wherever the command was started
_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / 'projects').is_dir() and str(_CHECKOUT) not in sys.path:
    sys.path.append(str(_CHECKOUT))
