"""The official nuScenes score, where mmdet3d 1.4 dies on results without a box and mistakes the
version of the data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from mmdet3d.datasets import NuScenesDataset
from mmdet3d.evaluation import NuScenesMetric
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric

_SENSORS = dict(
    use_camera=False, use_lidar=True, use_radar=False, use_map=False, use_external=False
)


@METRICS.register_module()
class NuScenesDevkitMetric(NuScenesMetric):
    """mmdet3d's NuScenesMetric, arguments and keys of the result alike, with these differences.

    - Results without any box score mAP 0; the devkit's filter raises `Invalid box type: None` for
      them.
    - The version is that of ann_file. mmdet3d takes it from the dataset's metainfo, which says
      v1.0-trainval whatever was loaded.
    - A submission names all five sources that the server asks for, not two.
    - What cannot be scored is refused with a reason, before training or testing where that is
      possible.

    Args:
        data_root: holds v1.0-*/ with the tables that the devkit reads.
        ann_file: info file of the split whose dataset is tested.
        classes: names in the order in which the model counts its labels; a dataset that counts
        them in another order
            is refused. None accepts any.
        format_only: write `{jsonfile_prefix}/pred_instances_3d/results_nusc.json` and score
        nothing: for the test
            split, whose annotations are not public.
        jsonfile_prefix: folder for that file and, where there is a score, for metrics_summary.json
        beside it.
        modality: sources of data named in the submission; LiDAR alone by default.
    Raises:
        FileNotFoundError, ValueError: no ann_file or tables; a damaged ann_file, one whose labels
            are counted in another order, or of the test split without format_only; classes in
            another order; results that are not one of each frame.
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
            raise ValueError('format_only writes a file: let jsonfile_prefix name a folder for it')
        super().__init__(
            data_root,
            ann_file,
            format_only=format_only,
            jsonfile_prefix=jsonfile_prefix,
            modality={**_SENSORS, **(modality or {})},
            **kwargs,
        )
        self.classes = None if classes is None else list(classes)
        self.info_version, self.point_files = _read_split(Path(ann_file))
        tables = Path(data_root, self.info_version)
        if not format_only and self.info_version == 'v1.0-test':
            raise ValueError(
                f'{ann_file}: the test split has no public annotations to score with; set '
                'format_only=True and jsonfile_prefix, and submit the file'
            )
        if not format_only and not tables.is_dir():
            raise FileNotFoundError(
                f'{tables}: no nuScenes tables there, which the devkit scores with; {ann_file} was '
                f'written for {self.info_version}, data_root is {data_root}'
            )
        if jsonfile_prefix is not None:  # better now than after hours of testing
            os.makedirs(jsonfile_prefix, exist_ok=True)
            if not os.access(jsonfile_prefix, os.W_OK):
                raise PermissionError(
                    f'{jsonfile_prefix}: this folder cannot be written; choose another '
                    'jsonfile_prefix'
                )

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        """Metainfo of the tested dataset, which the runner hands over before the first batch."""
        found = list(dataset_meta['classes'])
        if self.classes is not None and found != self.classes:
            raise ValueError(
                f'the dataset counts its classes as {found}, the model as {self.classes}: labels would '
                "be taken for other classes. Let metainfo=dict(classes=...) of the loader's dataset list "
                "the classes in the order of the head's tasks"
            )
        self._dataset_meta = {**dataset_meta, 'version': self.info_version}

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of a batch, see NuScenesMetric.process."""
        for sample in data_samples:
            index, file = sample['sample_idx'], Path(sample.get('lidar_path', '')).name
            if not 0 <= index < len(self.point_files) or file and file != self.point_files[index]:
                raise ValueError(
                    f'a result of frame {index}, {file or "points unknown"}, is none of the '
                    f'{len(self.point_files)} frames of {self.ann_file}: the evaluator and the dataset '
                    'take different info files'
                )
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Scores of the whole split, or none with format_only; see
        NuScenesMetric.compute_metrics."""
        found, frames = [result['sample_idx'] for result in results], len(self.point_files)
        if len(found) != frames or len(set(found)) != frames:
            raise ValueError(
                f'{len(found)} results of {len(set(found))} different frames, {self.ann_file} has '
                f'{frames}: the devkit scores whole splits, so test every frame once (no indices, no '
                'resampling of the dataset)'
            )
        return super().compute_metrics(results)

    def _evaluate_single(self, *args, **kwargs) -> dict[str, float]:
        from nuscenes.eval.detection import evaluate

        keep = evaluate.filter_eval_boxes

        def filter_boxes(tables, boxes, *rest, **options):
            return keep(tables, boxes, *rest, **options) if boxes.all else boxes

        try:
            with mock.patch.object(evaluate, 'filter_eval_boxes', filter_boxes):
                return super()._evaluate_single(*args, **kwargs)
        except AssertionError as error:
            if 'Samples in split' not in str(error):
                raise
            raise ValueError(
                f'{self.ann_file}: its {len(self.point_files)} frames are not those of the validation '
                f'split of {self.info_version}, which is all that the devkit scores'
            ) from error


def _read_split(path: Path) -> tuple[str, list[str]]:
    """Version and names of the point files of an info file."""
    if not path.is_file():
        raise FileNotFoundError(
            f'there is no info file {path}: `python tools/create_data.py {path.parent} --version '
            'VERSION` writes it, VERSION being v1.0-mini, v1.0-trainval or v1.0-test'
        )
    try:
        content = pickle.loads(path.read_bytes())
        meta, frames = content['metainfo'], content['data_list']
        version, categories = meta['version'], meta['categories']
        files = [Path(frame['lidar_points']['lidar_path']).name for frame in frames]
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ImportError,
    ) as error:
        raise ValueError(
            f'{path}: damaged, or no mmdet3d info file of version 2 ({type(error).__name__}: {error}); '
            'delete it and let tools/create_data.py write it again'
        ) from error
    order = NuScenesDataset.METAINFO['classes']
    labels = {name: label for name, label in categories.items() if label >= 0}
    if labels != {name: i for i, name in enumerate(order)}:
        raise ValueError(
            f'{path}: counts its classes as {labels}, mmdet3d reads them as {list(order)}: boxes would be '
            'taken for other classes; let tools/create_data.py write it again'
        )
    return version, files
