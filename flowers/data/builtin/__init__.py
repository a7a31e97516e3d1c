"""Data sets that have a name: drawn on the spot, or downloaded once."""
