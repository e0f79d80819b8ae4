"""Readers of point files, one module for each kind; none takes memory before it knows the size."""
