"""Registered transforms of the data pipelines."""
