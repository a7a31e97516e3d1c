"""The HTTP protocols that the server speaks: each makes FastAPI routes over a `serving.answers.Service`."""
