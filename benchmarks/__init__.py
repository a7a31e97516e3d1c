"""Measurements: speed, side by side with plain Keras."""
