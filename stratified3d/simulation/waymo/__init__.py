"""Simulated datasets in the format of Waymo's perception v2."""
