"""Results of a nuScenes detector beside their ground truth, as the devkit reads them."""

from __future__ import annotations

import json
from pathlib import Path

from nuscenes import NuScenes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval


def load_submission(data_root: str | Path, version: str, results: str | Path) -> DetectionEval:
    """Return the devkit's evaluation with its boxes loaded and filtered: `gt_boxes`, `pred_boxes`.

    Args:
        data_root: of the dataset in nuScenes format.
        version: v1.0-mini or v1.0-trainval, whose validation split was tested.
        results: results_nusc.json of `NuScenesDevkitMetric`.

    Raises:
        ValueError: results without a single box, which the devkit cannot read.
    """
    results = Path(results)
    if not any(json.loads(results.read_bytes())['results'].values()):
        raise ValueError(f'{results}: contains no boxes, so there is nothing to compare')
    return DetectionEval(
        NuScenes(version, str(data_root), verbose=False),
        config_factory('detection_cvpr_2019'),
        str(results),
        eval_set='mini_val' if version == 'v1.0-mini' else 'val',
        output_dir=str(results.parent),
        verbose=False,
    )
