"""Reading and writing files: points, info files."""
