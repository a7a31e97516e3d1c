"""Bulk prediction: any number of photos through a bundle."""
