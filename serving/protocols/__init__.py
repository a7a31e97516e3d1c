"""The HTTP protocols that the server speaks: each makes FastAPI routes over a `serving.service.Service`."""
