"""What keeps a long run from working, found before it: what each node says of itself, and what that means."""
