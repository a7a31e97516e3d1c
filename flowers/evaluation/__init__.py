"""Exact metrics and the report made of them."""
