"""Registers everything in mmdet3d, for configs: `custom_imports =
dict(imports=['stratified3d.plugin'])`."""

# the decorators in these modules register their classes

import stratified3d.datasets.custom.dataset
import stratified3d.datasets.sampling.class_balance
import stratified3d.datasets.sampling.ground_truth_sampler
import stratified3d.datasets.transforms.clips
import stratified3d.datasets.transforms.roughness
import stratified3d.datasets.transforms.sensor_variation
import stratified3d.datasets.transforms.sweeps
import stratified3d.datasets.transforms.thinning
import stratified3d.datasets.transforms.tilting
import stratified3d.engine
import stratified3d.evaluation.center_distance
import stratified3d.evaluation.nuscenes_metric
import stratified3d.evaluation.waymo.metric
import stratified3d.models
import stratified3d.visualization.hook  # noqa: F401
from stratified3d.checkpoints import register_loader
from stratified3d.datasets.io.safe_pickle import register_reader

register_loader()
register_reader()
