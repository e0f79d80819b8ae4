"""Waymo perception v2 (parquet) to points and info files."""
