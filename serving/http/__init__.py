"""What is spoken over HTTP, whatever the protocol."""
