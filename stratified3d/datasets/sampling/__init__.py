"""What is drawn: class-balanced frames and ground-truth objects."""
