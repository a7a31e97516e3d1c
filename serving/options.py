"""What can be chosen when serving; the same names on the command line and in serve.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowers.data.images import MAX_PIXELS


class Tuning(BaseModel):
    """What can be changed while the server runs, as the deployment's `user_config`."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int = Field(
        default=32, ge=1, le=1024, description="Photos that go through the network together, at most."
    )
    batch_wait_ms: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Time that an idle network waits for more photos; while it is busy they gather by themselves.",
    )


class Options(BaseModel):
    """How a bundle is served."""

    model_config = ConfigDict(extra="forbid")

    bundle: str = Field(
        description="What to serve: a run folder, a bundle, or a folder MODELS with MODELS/<name>/<number>/ bundles."
    )
    name: str = Field(default="flowers", pattern=r"^[A-Za-z0-9_.-]+$", description="The model's name in URLs.")
    version: int | None = Field(default=None, ge=0, description="Serve this version and no newer one.")
    watch_s: float = Field(default=2.0, ge=0, description="Look for a new version so often, in seconds; 0 never looks.")
    tuning: Tuning = Tuning()

    max_request_bytes: int = Field(default=32 << 20, ge=1, description="Largest request.")
    max_items: int = Field(default=64, ge=1, description="Photos a request, at most.")
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="Photos with more pixels are refused before decoding."
    )
    max_wait_s: float = Field(
        default=3.0, gt=0, description="Photos that would wait longer for the network get 503, in seconds."
    )
    max_waiting: int = Field(
        default=512, ge=1, description="Photos that may wait in a replica; a request beyond gets 503."
    )
    max_held_bytes: int = Field(
        default=512 << 20, ge=1, description="Bytes of requests in a replica at a time; a request beyond gets 503."
    )
    timeout_s: float = Field(default=30.0, gt=0, description="A request that takes longer gets 503, in seconds.")
    body_timeout_s: float = Field(
        default=20.0, gt=0, description="A request must have arrived in this time, in seconds."
    )
    tokens_file: str | None = Field(
        default=None, description="A file of bearer tokens, one a line; without, all may ask."
    )
    admin_token_file: str | None = Field(default=None, description="A file with the token of POST /admin/reload.")

    replicas: int = Field(default=1, ge=1, description="Copies of the model to start with, and to keep at least.")
    max_replicas: int | None = Field(default=None, ge=1, description="Add replicas up to this number under load.")
    cpus: float = Field(
        default=0, ge=0, description="CPUs of a replica; 0 takes all of one machine, divided by the replicas."
    )
    gpus: float = Field(default=0, ge=0, description="GPUs of a replica.")

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, required is at least replicas, {self.replicas}")
        if self.max_request_bytes > self.max_held_bytes:
            raise ValueError(
                f"max_request_bytes is {self.max_request_bytes}, required is at most max_held_bytes, "
                f"{self.max_held_bytes}"
            )
        if self.max_items > self.max_waiting:
            raise ValueError(f"max_items is {self.max_items}, required is at most max_waiting, {self.max_waiting}")
        return self


def batch_sizes(most: int) -> tuple[int, ...]:
    """The sizes that batches are padded to: powers of two, and the largest."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def first_problem(error: Any) -> str:
    """The first thing that pydantic found wrong, as one line."""
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"])
    return f"{where + ': ' if where else ''}{found['msg']}" + (f", received {found['input']!r}" if where else "")
