import hashlib
import shutil

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def small_set(waymo_set, tmp_path):
    """A copy of the segments that a test may damage."""
    return shutil.copytree(waymo_set, tmp_path / 'v2')


@pytest.fixture(scope='session')
def fingerprint():
    """Hashes of all files of a converted set, without its records."""

    def hash_files(out):
        return {
            str(path.relative_to(out)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob('*'))
            if path.is_file() and '.conversion' not in path.parts
        }

    return hash_files


@pytest.fixture(scope='session')
def segment_names():
    """Sorted names of the segments of a split."""
    return lambda root, split='training': sorted(
        path.stem for path in (root / split / 'lidar').iterdir()
    )


@pytest.fixture(scope='session')
def rewrite():
    """Replace a parquet file by a changed one: change(table); options of write_table."""

    def change_file(path, change=lambda table: table, **options):
        pq.write_table(change(pq.read_table(path)), path, **options)

    return change_file
