"""Metrics on NumPy arrays, no input or output."""
