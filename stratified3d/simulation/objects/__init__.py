"""Shapes of vehicles, people and street furniture, made of convex primitives."""
