"""Backbones, the classifier that is saved, and the cached output of its frozen part."""
