"""What the frozen part of the network makes of each photo, computed once and cached."""
