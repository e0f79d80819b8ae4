"""Write Waymo's perception v2 layout: one parquet file per segment and component."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stratified3d.resumable import PARTIAL, name_file

COMPONENTS = ('lidar', 'lidar_pose', 'lidar_calibration', 'vehicle_pose', 'lidar_box')
_FRAME, _LASER = ('key.frame_timestamp_micros', 'int64'), ('key.laser_name', 'int8')
_FLOATS, _COUNTS, _TRANSFORM = 'list<float>', 'list<int32>', 'list<double>'
_BOX_NUMBERS = (
    'box.center.x',
    'box.center.y',
    'box.center.z',
    'box.size.x',
    'box.size.y',
    'box.size.z',
    'box.heading',
)
_COLUMNS = {  # component: its keys after the segment's, its Waymo name, its fields
    'lidar': (
        [_FRAME, _LASER],
        'LiDARComponent',
        [
            (f'range_image_return{i}.{part}', kind)
            for i in (1, 2)
            for part, kind in (('values', _FLOATS), ('shape', _COUNTS))
        ],
    ),
    'lidar_pose': (
        [_FRAME, _LASER],
        'LiDARPoseComponent',
        [('range_image_return1.values', _FLOATS), ('range_image_return1.shape', _COUNTS)],
    ),
    'lidar_calibration': (
        [_LASER],
        'LiDARCalibrationComponent',
        [
            ('extrinsic.transform', _TRANSFORM),
            ('beam_inclination.min', 'double'),
            ('beam_inclination.max', 'double'),
            ('beam_inclination.values', 'list<double>'),
        ],
    ),
    'vehicle_pose': (
        [_FRAME],
        'VehiclePoseComponent',
        [('world_from_vehicle.transform', _TRANSFORM)],
    ),
    'lidar_box': (
        [_FRAME, ('key.laser_object_id', 'string')],
        'LiDARBoxComponent',
        [(name, 'double') for name in _BOX_NUMBERS]
        + [
            ('type', 'int8'),
            ('num_lidar_points_in_box', 'int64'),
            ('num_top_lidar_points_in_box', 'int64'),
        ]
        + [(f'speed.{axis}', 'double') for axis in 'xyz']
        + [('difficulty_level.detection', 'int8')],
    ),
}


class SegmentWriter:
    """Writer of one segment's components, row by row.

    Args:
        paths: {component: file}.
        context: the segment's name.
    """

    def __init__(self, paths: dict[str, Path], context: str):
        import pyarrow  # imported here: only this format needs it
        import pyarrow.parquet

        self._arrow = pyarrow
        self._context = context
        self._schemas = {}
        self._files = {}
        kinds = {
            'int8': pyarrow.int8(),
            'int64': pyarrow.int64(),
            'double': pyarrow.float64(),
            'string': pyarrow.string(),
            _FLOATS: pyarrow.list_(pyarrow.float32()),
            _COUNTS: pyarrow.list_(pyarrow.int32()),
            _TRANSFORM: pyarrow.list_(pyarrow.float64()),
        }
        for component, path in paths.items():
            keys, name, fields = _COLUMNS[component]
            columns = [('key.segment_context_name', 'string'), *keys]
            columns += [(f'[{name}].{field}', kind) for field, kind in fields]
            schema = pyarrow.schema([(column, kinds[kind]) for column, kind in columns])
            self._schemas[component] = schema
            self._files[component] = pyarrow.parquet.ParquetWriter(
                path, schema, use_dictionary=False, write_page_checksum=True
            )

    def add(self, component: str, rows: list[tuple]) -> None:
        """Add rows as one row group.

        A row is the keys after the segment's, then the fields; images [H, W, C] are arrays.
        """
        schema, arrow = self._schemas[component], self._arrow
        columns = [arrow.array([self._context] * len(rows), schema[0].type)]
        for i, field in enumerate(list(schema)[1:]):
            values = [row[i] for row in rows]
            if field.type == arrow.list_(arrow.float32()):
                columns.append(self._join_images(values))
            else:
                columns.append(arrow.array(values, field.type))
        self._files[component].write_batch(arrow.RecordBatch.from_arrays(columns, schema=schema))

    def _join_images(self, images: list[np.ndarray]):
        """A column whose rows are the flattened images."""
        ends = np.cumsum([0, *(image.size for image in images)]).astype(np.int32)
        flat = np.concatenate([image.ravel() for image in images] or [np.zeros(0)])
        values = self._arrow.array(flat.astype(np.float32))
        return self._arrow.ListArray.from_arrays(self._arrow.array(ends), values)

    def close(self) -> None:
        """Write the files' ends."""
        for file in self._files.values():
            file.close()


@contextlib.contextmanager
def write_segment(root: Path, split: str, context: str) -> Iterator[SegmentWriter]:
    """A writer of one segment, whose files appear whole when the block is left.

    They are <root>/<split>/<component>/<context>.parquet.

    Raises:
        OSError: a full disk; it names the file.
    """
    paths = {component: root / split / component / f'{context}.parquet' for component in COMPONENTS}
    partial = {
        component: path.with_name(f'{path.name}{PARTIAL}') for component, path in paths.items()
    }
    try:
        with name_file(paths['lidar']):
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            writer = SegmentWriter(partial, context)
            yield writer
            writer.close()
            # `lidar` comes last and says that the segment is there
            for component in reversed(COMPONENTS):
                os.replace(partial[component], paths[component])
    except OSError:
        for path in partial.values():
            path.unlink(missing_ok=True)
        raise
