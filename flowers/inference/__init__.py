"""The network compiled for this machine."""
