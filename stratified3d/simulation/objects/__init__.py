"""Vehicles, people and street furniture, composed of convex primitives."""
