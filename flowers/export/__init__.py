"""Exports: the network of a bundle as other programs load it, one module a format."""
