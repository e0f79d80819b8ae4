"""Pictures from mmdet3d's own scripts, whose visualisation needs a display: a registered hook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet3d.registry import HOOKS
from mmdet3d.structures import Det3DDataSample
from mmengine.hooks import Hook
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner

from stratified3d.visualization.bev import draw_bev
from stratified3d.visualization.drawing import Drawing
from stratified3d.visualization.pictures import PictureFolder


@HOOKS.register_module()
class DetectionPictureHook(Hook):
    """Draw detections in a test (`tools/test.py ... --show-dir DIR --task lidar_det`), and write
    TensorBoard's files while training (`--cfg-options
    default_hooks.visualization.tensorboard=True`); neither needs a display.

    mmdet3d's Det3DVisualizationHook stops where there is no display, and draws the keyframe's
    points only and no truth; here the points are those that the model saw. A relative
    `test_out_dir` lies in the run's folder, work_dir/timestamp, as it does there.

    Args:
        draw: whether to draw in a test; test.py sets it with --show-dir.
        score_thr: predictions below are not drawn.
        test_out_dir: where a test's pictures go.
        interval: draw every so many frames of a test.
        tensorboard: write losses, learning rate and metrics for TensorBoard, and pictures of
        validation frames.
        val_frames: how many of these, the first ones; they also lie in `vis_data/vis_image`.
        show, wait_time, vis_task: of test.py; a window is tools/visualize.py's.
    Raises:
        ImportError: tensorboard is asked for and not installed.
        ValueError: asked for a window, for another task than lidar_det, or to draw without a
        folder.
    """

    def __init__(
        self,
        draw: bool = False,
        score_thr: float = 0.3,
        test_out_dir: str | None = None,
        interval: int = 1,
        tensorboard: bool = False,
        val_frames: int = 4,
        show: bool = False,
        wait_time: float = 0.0,
        vis_task: str = 'lidar_det',
    ):
        if show:
            raise ValueError(
                '--show: a window is opened by `tools/visualize.py CONFIG CHECKPOINT --dataset --show`; '
                'here, --show-dir DIR writes pictures'
            )
        if vis_task != 'lidar_det':
            raise ValueError(f'--task: this plugin draws lidar_det, not {vis_task}')
        if draw and test_out_dir is None:
            raise ValueError('draw=True without test_out_dir: where do the pictures go?')
        if interval < 1:
            raise ValueError(f'interval is at least 1, not {interval}')
        self.draw, self.score_thr, self.test_out_dir = draw, score_thr, test_out_dir
        self.interval, self.tensorboard, self.val_frames = interval, tensorboard, val_frames
        self._folder: PictureFolder | None = None
        self._seen = 0

    def before_run(self, runner: Runner) -> None:
        """Add TensorBoard to what the runner writes to."""
        if not self.tensorboard:
            return
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'default_hooks.visualization.tensorboard=True needs the package tensorboard: `pip '
                'install tensorboard`, or leave it out'
            ) from error
        runner.visualizer._vis_backends['TensorboardVisBackend'] = VISBACKENDS.build(
            dict(type='TensorboardVisBackend', save_dir=str(Path(runner.log_dir, 'vis_data')))
        )

    def before_test(self, runner: Runner) -> None:
        """Make the folder and start the renderer."""
        if self.draw:
            folder = Path(runner.work_dir, runner.timestamp, self.test_out_dir)
            self._folder = PictureFolder(folder, _area(runner))
            runner.logger.info(f'pictures: {folder}')
        self._seen = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Det3DDataSample]
    ) -> None:
        """Draw the samples of a batch whose turn it is."""
        for i, sample in enumerate(outputs):
            if self._folder is not None and self._seen % self.interval == 0:
                scene = self._scene(runner, data_batch, outputs, i)
                self._folder.write(Path(sample.lidar_path).name.split('.')[0], scene)
            self._seen += 1

    def after_test(self, runner: Runner) -> None:
        """End the renderer."""
        if self._folder is not None:
            self._folder.close()

    def before_val(self, runner: Runner) -> None:
        """Count anew."""
        self._seen = 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Det3DDataSample]
    ) -> None:
        """Give TensorBoard the first frames from above."""
        for i in range(len(outputs)):
            if self.tensorboard and self._seen < self.val_frames:
                scene = self._scene(runner, data_batch, outputs, i)
                runner.visualizer.add_image(
                    f'val_frame_{self._seen}', draw_bev(scene, _area(runner)), runner.iter
                )
            self._seen += 1

    def _scene(
        self, runner: Runner, data_batch: dict, outputs: Sequence[Det3DDataSample], i: int
    ) -> Drawing:
        sample, classes = outputs[i], runner.visualizer.dataset_meta['classes']
        found = sample.pred_instances_3d.to('cpu')
        found = found[found.scores_3d >= self.score_thr]
        truth = getattr(sample, 'eval_ann_info', None)
        boxes = None
        if truth is not None:
            boxes = (
                truth['gt_bboxes_3d'].tensor.cpu().numpy()[np.asarray(truth['gt_labels_3d']) >= 0]
            )
        name = Path(sample.lidar_path).name.split('.')[0]
        return Drawing(
            data_batch['inputs']['points'][i].cpu().numpy(),
            found.bboxes_3d.tensor.numpy(),
            found.scores_3d.numpy(),
            [classes[label] for label in found.labels_3d.tolist()],
            boxes,
            f'{name}: {len(found)} predictions with score \u2265 {self.score_thr:g}',
        )


def _area(runner: Runner) -> list[float]:
    """x_min, y_min, x_max, y_max of the model's range."""
    limits = runner.cfg.model.point_cloud_range
    return [limits[i] for i in (0, 1, 3, 4)]
