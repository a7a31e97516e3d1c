"""Online predictions on Ray Serve."""
