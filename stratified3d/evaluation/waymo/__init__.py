"""Waymo's detection metric: boxes, files, matching, scores."""
