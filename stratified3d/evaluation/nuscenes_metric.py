"""The official nuScenes score, without the failures of mmdet3d 1.4 on results without boxes and on
versions other than v1.0-trainval."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdet3d.datasets import NuScenesDataset
from mmdet3d.evaluation import NuScenesMetric
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric

from stratified3d.datasets.io.info_files import read_info_file

_SENSORS = dict(
    use_camera=False, use_lidar=True, use_radar=False, use_map=False, use_external=False
)
# beyond the range of every class, so the devkit filters it out before it counts anything
_FAR_BOX = dict(
    translation=[1e6, 1e6, 0.0],
    size=[1.0, 1.0, 1.0],
    rotation=[1.0, 0.0, 0.0, 0.0],
    velocity=[0.0, 0.0],
    detection_name='car',
    detection_score=0.0,
    attribute_name='',
)


@METRICS.register_module()
class NuScenesDevkitMetric(NuScenesMetric):
    """mmdet3d's NuScenesMetric with the same arguments and keys, and these differences.

    - Results without any box score mAP 0; the devkit raises `Invalid box type: None` for them.
    - The version is that of ann_file. mmdet3d takes it from the dataset's metainfo, which is always
      v1.0-trainval.
    - An info file of scenes of one's own, which are in no official split, is scored by the same
      rules (`create_data.py --splits`).
    - A submission names all five sources that the server asks for, not two.
    - What cannot be scored is refused with a reason, before training or testing where that is
      possible.

    Args:
        data_root: folder of v1.0-*/ with the tables that the devkit reads.
        ann_file: info file of the split whose dataset is tested.
        classes: names in the order of the model's labels; a dataset with another order is refused.
            None accepts any.
        format_only: write `{jsonfile_prefix}/pred_instances_3d/results_nusc.json` and score
            nothing: for the test split, whose annotations are not public.
        jsonfile_prefix: folder for that file and, where there is a score, for metrics_summary.json
            beside it.
        modality: sources of data named in the submission; LiDAR alone by default.
    Raises:
        FileNotFoundError, ValueError: no ann_file or tables; an ann_file that is damaged, has
            another order of labels, or is of the test split without format_only; classes in another
            order; results that are not one of each frame.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        classes: Sequence[str] | None = None,
        format_only: bool = False,
        jsonfile_prefix: str | None = None,
        modality: dict | None = None,
        **kwargs,
    ):
        if format_only and jsonfile_prefix is None:
            raise ValueError('format_only writes a file: set jsonfile_prefix to a folder for it')
        super().__init__(
            data_root,
            ann_file,
            format_only=format_only,
            jsonfile_prefix=jsonfile_prefix,
            modality={**_SENSORS, **(modality or {})},
            **kwargs,
        )
        self.classes = None if classes is None else list(classes)
        self.info_version, self.point_files, self.own_scenes = _read_split(Path(ann_file))
        if not format_only:
            self._check_tables()
        if jsonfile_prefix is not None:  # better now than after hours of testing
            os.makedirs(jsonfile_prefix, exist_ok=True)
            if not os.access(jsonfile_prefix, os.W_OK):
                raise PermissionError(
                    f'{jsonfile_prefix}: this folder cannot be written; choose another '
                    'jsonfile_prefix'
                )

    def _check_tables(self) -> None:
        """Raise an error where the devkit has nothing to score with."""
        if self.info_version == 'v1.0-test':
            raise ValueError(
                f'{self.ann_file}: the test split has no public annotations to score with; set '
                'format_only=True and jsonfile_prefix, and submit the file'
            )
        tables = Path(self.data_root, self.info_version)
        if not tables.is_dir():
            raise FileNotFoundError(
                f'{tables}: no nuScenes tables there, which the devkit scores with; '
                f'{self.ann_file} was written for {self.info_version}, data_root is '
                f'{self.data_root}'
            )

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        """Metainfo of the tested dataset, which the runner hands over before the first batch."""
        found = list(dataset_meta['classes'])
        if self.classes is not None and found != self.classes:
            raise ValueError(
                f'the dataset orders its classes as {found}, the model as {self.classes}: labels '
                "would be taken for other classes. Set metainfo=dict(classes=...) of the loader's "
                "dataset to the classes in the order of the head's tasks"
            )
        self._dataset_meta = {**dataset_meta, 'version': self.info_version}

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of a batch, see NuScenesMetric.process."""
        frames = len(self.point_files)
        for sample in data_samples:
            index = sample['sample_idx']
            file = Path(sample.get('lidar_path', '')).name
            if not 0 <= index < frames or file and file != self.point_files[index]:
                raise ValueError(
                    f'a result of frame {index}, {file or "points unknown"}, does not belong to '
                    f'the {frames} frames of {self.ann_file}: the evaluator and the dataset use '
                    'different info files'
                )
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Scores of the whole split, or none with format_only; see
        NuScenesMetric.compute_metrics."""
        found = [result['sample_idx'] for result in results]
        frames = len(self.point_files)
        if len(found) != frames or len(set(found)) != frames:
            raise ValueError(
                f'{len(found)} results of {len(set(found))} different frames, but {self.ann_file} '
                f'has {frames}: the devkit scores whole splits, so test every frame once (no '
                'indices, no resampling of the dataset)'
            )
        return super().compute_metrics(results)

    def _evaluate_single(self, result_path: str, *args, **kwargs) -> dict[str, float]:
        if self.own_scenes is not None:
            return self._evaluate_own(self.own_scenes, Path(result_path), *args, **kwargs)
        try:
            return super()._evaluate_single(result_path, *args, **kwargs)
        except Exception as error:  # the devkit raises nothing more specific
            if 'Samples in split' in str(error):
                raise ValueError(
                    f'{self.ann_file}: its {len(self.point_files)} frames are not those of the '
                    f'validation split of {self.info_version}, which is all that the devkit scores'
                ) from error
            if 'Invalid box type: None' not in str(error):
                raise
        with _with_far_box(Path(result_path)) as path:
            return super()._evaluate_single(str(path), *args, **kwargs)

    def _evaluate_own(
        self,
        scenes: list[str],
        result: Path,
        classes: Sequence[str],
        result_name: str = 'pred_instances_3d',
    ) -> dict[str, float]:
        """Scores of scenes in no official split, under the keys of NuScenesMetric."""
        content = json.loads(result.read_bytes())
        has_boxes = any(content['results'].values())
        with contextlib.nullcontext(result) if has_boxes else _with_far_box(result) as path:
            metrics = score_own_scenes(
                self.data_root,
                self.info_version,
                scenes,
                path,
                self.eval_detection_configs,
            )
        prefix = f'{result_name}_NuScenes'
        scores = {f'{prefix}/NDS': metrics['nd_score'], f'{prefix}/mAP': metrics['mean_ap']}
        for key, value in metrics['tp_errors'].items():
            scores[f'{prefix}/{self.ErrNameMapping[key]}'] = round(value, 4)
        for name in classes:
            for distance, value in metrics['label_aps'][name].items():
                scores[f'{prefix}/{name}_AP_dist_{distance}'] = round(value, 4)
            for key, value in metrics['label_tp_errors'][name].items():
                scores[f'{prefix}/{name}_{key}'] = round(value, 4)
        return scores


def score_own_scenes(
    data_root: str | Path, version: str, scenes: Sequence[str], result: Path, config
) -> dict:
    """Score a submission on named scenes; returns the content of metrics_summary.json, which is
    written beside it.

    Args:
        data_root, version: of the tables.
        scenes: names, of all frames in the submission.
        result: the submission.
        config: of the devkit, such as `config_factory('detection_cvpr_2019')`.
    """
    from nuscenes import NuScenes
    from nuscenes.eval.detection.evaluate import DetectionEval

    tables = NuScenes(version, str(data_root), verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        # where the devkit looks for splits of one's own; the dataset's folder may be read-only
        path = Path(folder, version, 'splits.json')
        path.parent.mkdir()
        path.write_text(json.dumps(dict(own=list(scenes))))
        tables.dataroot = folder
        out = str(result.parent)
        evaluation = DetectionEval(tables, config, str(result), 'own', out, verbose=False)
        evaluation.main(render_curves=False)
    return json.loads((result.parent / 'metrics_summary.json').read_bytes())


@contextlib.contextmanager
def _with_far_box(path: Path) -> Iterator[Path]:
    """A submission without boxes, with one that does not count: the devkit takes the type of boxes
    from the first one. The file lies beside the original one and is deleted at the end."""
    submission = json.loads(path.read_bytes())
    token = next(iter(submission['results']))
    submission['results'][token] = [dict(_FAR_BOX, sample_token=token)]
    changed = path.with_name(f'{path.stem}_far_box.json')
    try:
        changed.write_text(json.dumps(submission))
        yield changed
    finally:
        changed.unlink(missing_ok=True)


def _read_split(path: Path) -> tuple[str, list[str], list[str] | None]:
    """Version, names of the point files and scenes of an info file; None for official scenes."""
    if not path.is_file():
        raise FileNotFoundError(
            f'there is no info file {path}: `python tools/create_data.py {path.parent} --version '
            'VERSION` writes it, with VERSION v1.0-mini, v1.0-trainval or v1.0-test'
        )
    content = read_info_file(path)
    try:
        version = content['metainfo']['version']
        scenes = content['metainfo'].get('scenes')
        categories = content['metainfo']['categories']
        frames = content['data_list']
        files = [Path(frame['lidar_points']['lidar_path']).name for frame in frames]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: damaged, or not an mmdet3d info file of version 2 ({type(error).__name__}: '
            f'{error}); delete it and rerun tools/create_data.py'
        ) from error

    order = NuScenesDataset.METAINFO['classes']
    labels = {name: label for name, label in categories.items() if label >= 0}
    if labels != {name: i for i, name in enumerate(order)}:
        raise ValueError(
            f'{path}: labels its classes {labels}, mmdet3d reads them as {list(order)}: boxes '
            'would be taken for other classes; rerun tools/create_data.py'
        )
    return version, files, scenes
