"""The options of serving: the same names on the command line and in serve.yaml."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import model_validator

from flowers.config import TrainConfig, unknown_option
from flowers.data.images import MAX_PIXELS
from flowers.options import OptionSet, flag, option, wrong

RUNS: str = TrainConfig.model_fields["storage"].default


# How often the bytes of a request are in memory: as they come, put together, and taken apart.
COPIES = 3


class Tuning(OptionSet):
    """What can be changed while the server runs, as the deployment's `user_config`."""

    max_batch_size: int = option(
        8,
        "Photos that go through the network together, at most; more than 8 pay on GPUs only.",
        group="Batches",
        ge=1,
        le=1024,
    )
    batch_wait_ms: float = option(
        0.0,
        "Time that an idle network waits for more photos; while it is busy they gather by themselves.",
        ge=0,
        le=1000,
    )


class ServeOptions(OptionSet):
    """How a bundle is served."""

    bundle: str = option(
        ...,
        "What to serve: a run folder, a bundle, or a folder MODELS with MODELS/<name>/<number>/ bundles.",
        group="Model",
        absent=f"the newest run of ./{RUNS}",
        path=True,
    )
    name: str = option(
        "flowers",
        "The model's name in URLs.",
        required="letters, digits, '.', '_' and '-'",
        pattern="^[A-Za-z0-9_.-]+$",
    )
    version: int | None = option(None, "Serve this version and no newer one.", absent="the newest", ge=0)
    max_bundle_bytes: int = option(
        2 << 30, "Largest bundle; one that takes much more memory than it has bytes is refused too.", ge=1
    )
    watch_s: float = option(2.0, "Look for a new version so often, in seconds; 0 never looks.", ge=0)
    tuning: Tuning = Tuning()

    unknown: float | None = unknown_option(group="Answers")

    max_request_bytes: int = option(32 << 20, "Largest request.", group="Limits", ge=1)
    max_items: int = option(64, "Photos a request, at most.", ge=1)
    max_pixels: int = option(MAX_PIXELS, "Photos with more pixels are refused before decoding.", ge=1)
    max_wait_s: float = option(3.0, "Photos that would wait longer for the network get 503, in seconds.", gt=0)
    max_waiting: int = option(512, "Photos that may wait in a replica; a request beyond gets 503.", ge=1)
    max_held_bytes: int = option(
        512 << 20,
        "Memory for requests in a replica, which take three times their bytes; a request beyond gets 503.",
        ge=1,
    )
    timeout_s: float = option(30.0, "A request that takes longer gets 503, in seconds.", gt=0)
    body_timeout_s: float = option(20.0, "A request must have arrived in this time, in seconds.", gt=0)

    grace_s: float = option(
        30.0, "When the server is told to end, what was accepted is answered within this time, in seconds.", gt=0
    )

    tokens_file: str | None = option(
        None, "A file of bearer tokens, one a line; without, all may ask.", group="Access", path=True
    )
    admin_token_file: str | None = option(None, "A file with the token of POST /admin/reload.", path=True)

    allowed_hosts: str | None = option(
        None,
        "Names of this server, a.example,b.example, or * for any: a request for another host is refused.",
        absent="that of --host and of this machine; on a cluster any",
    )
    cors_origins: str = option(
        "",
        "Pages of these origins may ask, by scripts of theirs: https://a.example,https://b.example, or * for all.",
        absent="pages of this server only",
    )
    root_path: str = option(
        "",
        "Path below which a proxy in front shows this server, if it takes it off: /flowers.",
        required="a path that begins with a slash and does not end with one",
        pattern="^(/[A-Za-z0-9._~-]+)*$",
    )

    sample_to: str | None = option(
        None,
        "Keep some photos, with what was answered, in this local folder, to label them. The page says so.",
        group="Samples",
        absent="none is kept",
        path=True,
    )
    sample_rate: float = option(0.01, "Share of photos to keep.", ge=0, le=1)
    sample_max_bytes: int = option(1 << 30, "Bytes of all samples, at most.", ge=1)

    replicas: int = option(1, "Copies of the model to start with, and to keep at least.", group="Machine", ge=1)
    max_replicas: int | None = option(None, "Add replicas up to this number under load.", ge=1)
    device: Literal["auto", "cpu", "gpu"] = option(
        "auto",
        "What computes: cpu leaves GPUs alone, gpu is --gpus 1 where it is not given, auto does as --gpus says.",
    )
    cpus: float = option(0.0, "CPUs of a replica; 0 takes all of one machine, divided by the replicas.", ge=0)
    gpus: float = option(0.0, "GPUs of a replica; below 1 is a part of one.", ge=0)
    engine: Literal["auto", "openvino", "tensorflow"] = option(
        "auto", "What runs the network: openvino or tensorflow; auto takes tensorflow where a replica has GPUs."
    )

    @property
    def replica_gpus(self) -> float:
        """GPUs of a replica: `gpus`, or what `device` means where they are not given."""
        return self.gpus or float(self.device == "gpu")

    def origins(self) -> list[str]:
        """The origins of `cors_origins`."""
        return [origin.strip().rstrip("/") for origin in self.cors_origins.split(",") if origin.strip()]

    def hosts(self) -> frozenset[str] | None:
        """The hosts of `allowed_hosts`, in lower case; None for any."""
        names = frozenset(name.strip().lower() for name in (self.allowed_hosts or "*").split(",") if name.strip())
        return None if "*" in names else names

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for origin in self.origins():
            if origin != "*" and not re.fullmatch(
                r"https?://[A-Za-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-fA-F:.]+\](:[0-9]+)?", origin
            ):
                raise wrong("cors_origins", origin, "origins such as https://a.example:8443 with commas between, or *")
        if self.gpus and self.device == "cpu":
            raise wrong("gpus", self.gpus, "none, or 0, beside --device cpu")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise wrong("max_replicas", self.max_replicas, f"at least {flag('replicas')} ({self.replicas})")
        if COPIES * self.max_request_bytes > self.max_held_bytes:
            raise wrong(
                "max_request_bytes",
                self.max_request_bytes,
                f"at most a third of {flag('max_held_bytes')} ({self.max_held_bytes})",
            )
        if self.max_items > self.max_waiting:
            raise wrong("max_items", self.max_items, f"at most {flag('max_waiting')} ({self.max_waiting})")
        return self


class Address(OptionSet):
    """Where `python -m serving` listens, and what it shows; on a cluster serve.yaml says it in Ray's words."""

    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0: all.", group="Address")
    port: int = option(8000, "Port to listen at.", ge=1, le=65535)
    verbose: bool = option(False, "Show everything that Ray and TensorFlow log.")
