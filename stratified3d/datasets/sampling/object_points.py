"""Points of annotated objects, cut from a frame for a ground-truth database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcv.ops import points_in_boxes_cpu
from torch import Tensor

from stratified3d.resumable import name_file


def cut_objects(
    root: Path, stem: str, points: Tensor, boxes: Tensor, names: Sequence[str | None]
) -> list[dict]:
    """Write the points of every box that has a name and points to <root>/<stem>_<name>_<box>.bin.

    Args:
        root: of the dataset.
        stem: beginning of the files' paths below root.
        points: [P, C] float32 x, y, z and more.
        boxes: [K, >= 7] bottom center x, y, z, dx, dy, dz, yaw, ...
        names: K classes; None leaves a box out.
    Returns:
        The entries of a ground-truth database, without image_idx, difficulty and group_id; see
        `nuscenes.database.create_database`.
    Raises:
        OSError: a full disk; it names the file.
    """
    if not len(boxes):  # an error of the operator
        return []
    inside = points_in_boxes_cpu(points[None, :, :3], boxes[None, :, :7])[0].bool()  # [P, K]
    entries = []
    for i, name in enumerate(names):
        if name is None or not inside[:, i].any():
            continue
        path = f'{stem}_{name}_{i}.bin'
        cut = points[inside[:, i]]
        # relative to the box; the sampler moves them back
        cut[:, :3] -= boxes[i, :3]
        with name_file(root / path):
            (root / path).write_bytes(cut.numpy().tobytes())
        entries.append(
            dict(
                name=name,
                path=path,
                gt_idx=i,
                box3d_lidar=boxes[i].tolist(),
                num_points_in_gt=len(cut),
            )
        )
    return entries
