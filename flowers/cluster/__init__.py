"""Ray: its session, its machines, and what runs where."""
