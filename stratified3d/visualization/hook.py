"""Pictures of detections in mmdet3d's own scripts, without a display: a registered hook."""

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
    """Draws detections in a test and writes TensorBoard's files in a training.

    In a test: `tools/test.py ... --show-dir DIR --task lidar_det`. In a training: `--cfg-options
    default_hooks.visualization.tensorboard=True`. Neither needs a display.

    mmdet3d's Det3DVisualizationHook stops where there is no display, and draws neither sweeps nor
    ground truth. Here all points are drawn that the model saw. As there, a relative `test_out_dir`
    is in the folder of the run, work_dir/timestamp.

    Args:
        draw: whether to draw in a test; test.py sets it with --show-dir.
        score_thr: predictions below are not drawn.
        test_out_dir: where the pictures of a test go.
        interval: draw every so many frames of a test.
        tensorboard: write losses, learning rate and metrics for TensorBoard, and pictures of
            validation frames.
        val_frames: how many of these, the first ones; they are in `vis_data/vis_image`, too.
        show, wait_time, vis_task: of test.py; tools/visualize.py opens a window instead.
    Raises:
        ImportError: tensorboard is not installed, but asked for.
        ValueError: a window, another task than lidar_det, or pictures without a folder.
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
                '--show: a window is opened by `tools/visualize.py CONFIG CHECKPOINT --dataset '
                '--show`; here, --show-dir DIR writes pictures'
            )
        if vis_task != 'lidar_det':
            raise ValueError(f'--task: this plugin draws lidar_det, not {vis_task}')
        if draw and test_out_dir is None:
            raise ValueError('draw=True without test_out_dir: name a folder for the pictures')
        if interval < 1:
            raise ValueError(f'interval is at least 1, not {interval}')
        self.draw = draw
        self.score_thr = score_thr
        self.test_out_dir = test_out_dir
        self.interval = interval
        self.tensorboard = tensorboard
        self.val_frames = val_frames
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
                'default_hooks.visualization.tensorboard=True needs the package tensorboard: '
                '`pip install tensorboard`, or leave it out'
            ) from error
        folder = Path(runner.log_dir, 'vis_data')
        backend = VISBACKENDS.build(dict(type='TensorboardVisBackend', save_dir=str(folder)))
        runner.visualizer._vis_backends['TensorboardVisBackend'] = backend

    def before_test(self, runner: Runner) -> None:
        """Create the folder and start the renderer."""
        if self.draw and self.test_out_dir is not None:
            folder = Path(runner.work_dir, runner.timestamp, self.test_out_dir)
            self._folder = PictureFolder(folder, _area(runner))
            runner.logger.info(f'pictures: {folder}')
        self._seen = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Det3DDataSample]
    ) -> None:
        """Draw every `interval`-th frame."""
        for i, sample in enumerate(outputs):
            if self._folder is not None and self._seen % self.interval == 0:
                drawing = self._make_drawing(runner, data_batch, outputs, i)
                self._folder.write(_frame_name(sample), drawing)
            self._seen += 1

    def after_test(self, runner: Runner) -> None:
        """End the renderer."""
        if self._folder is not None:
            self._folder.close()

    def before_val(self, runner: Runner) -> None:
        """Count the frames from the start."""
        self._seen = 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Det3DDataSample]
    ) -> None:
        """Give TensorBoard pictures of the first frames."""
        for i in range(len(outputs)):
            if self.tensorboard and self._seen < self.val_frames:
                drawing = self._make_drawing(runner, data_batch, outputs, i)
                pixels = draw_bev(drawing, _area(runner))
                runner.visualizer.add_image(f'val_frame_{self._seen}', pixels, runner.iter)
            self._seen += 1

    def _make_drawing(
        self, runner: Runner, data_batch: dict, outputs: Sequence[Det3DDataSample], i: int
    ) -> Drawing:
        sample = outputs[i]
        points = data_batch['inputs']['points'][i].cpu().numpy()
        classes = runner.visualizer.dataset_meta['classes']

        found = sample.pred_instances_3d.to('cpu')
        found = found[found.scores_3d >= self.score_thr]
        count = f'{len(found)} predictions with score \u2265 {self.score_thr:g}'
        return Drawing(
            points,
            found.bboxes_3d.tensor.numpy(),
            found.scores_3d.numpy(),
            [classes[label] for label in found.labels_3d.tolist()],
            _gt_boxes(sample),
            f'{_frame_name(sample)}: {count}',
        )


def _gt_boxes(sample: Det3DDataSample) -> np.ndarray | None:
    """Annotated boxes of known classes; None for a dataset without annotations."""
    annotations = getattr(sample, 'eval_ann_info', None)
    if annotations is None:
        return None
    is_known = np.asarray(annotations['gt_labels_3d']) >= 0
    return annotations['gt_bboxes_3d'].tensor.cpu().numpy()[is_known]


def _frame_name(sample: Det3DDataSample) -> str:
    return Path(sample.lidar_path).stem.removesuffix('.pcd')


def _area(runner: Runner) -> list[float]:
    """x_min, y_min, x_max, y_max of the model's range."""
    limits = runner.cfg.model.point_cloud_range
    return [limits[i] for i in (0, 1, 3, 4)]
