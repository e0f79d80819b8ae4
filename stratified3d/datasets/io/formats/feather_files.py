"""Tables of Arrow (.feather), as Argoverse 2 stores its sweeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratified3d.datasets.io.formats.columns import (
    INTENSITY_NAMES,
    POINT_BYTES,
    Columns,
    check_memory,
    errors_named,
)

_ROW_BYTES = 16 + POINT_BYTES  # four columns of float32, and once more as points


def read_feather(path: Path) -> Columns:
    """Read the columns x, y, z and intensity.

    Raises:
        PointFileError: damaged, or of another kind.
    """
    import pyarrow

    with errors_named(path, 'a .feather file (version 2)'), path.open('rb') as file:
        schema = pyarrow.ipc.open_file(file).schema
        chosen = [
            index
            for index, name in enumerate(schema.names)
            if name.lower() in (*'xyz', *INTENSITY_NAMES)
        ]
        names = [schema.names[index] for index in chosen]
        if not chosen:
            return {name: np.zeros(0) for name in schema.names}

        options = pyarrow.ipc.IpcReadOptions(included_fields=chosen, use_threads=False)
        reader = pyarrow.ipc.open_file(file, options=options)
        batches = []
        rows = 0
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            rows += batch.num_rows
            check_memory(path, rows * _ROW_BYTES)
            batch.validate(full=True)
            batches.append(batch)
        table = pyarrow.Table.from_batches(batches, reader.schema)
        return {name: table[name].to_numpy() for name in names}
