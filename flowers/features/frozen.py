"""The frozen network: converted once, kept beside the feature caches, compiled where the photos are."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowers import storage
from flowers.errors import DamagedFile
from flowers.features.spec import BATCH
from flowers.inference.engine import CPU_BATCH, Engine
from flowers.model.registry import PIXELS

_MANIFEST = "network.json"


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A backbone with its start weights, from photos to its outputs at some cuts.

    It can be sent to other processes; `prepare` has to be called once before any of them asks for an engine.

    Attributes:
        folder: URI under which converted networks are kept.
        backbone: its name.
        weights: key of its weights (`flowers.model.weights.weights_key`).
        image_size: height and width of the input, in pixels.
        precision: "float32" or "bfloat16".
        engine_name: the engine that runs it (`flowers.inference.engine.ENGINES`).
        build: makes the Keras model (`flowers.model.backbones.build_backbone`); can be pickled.
    """

    folder: str
    backbone: str
    weights: str
    image_size: int
    precision: str
    engine_name: str
    build: Callable[[], Any]

    def prepare(self, cuts: Sequence[str], network: Callable[[], Any]) -> None:
        """Converts the network for OpenVINO, unless that was done before.

        Args:
            cuts: its outputs.
            network: gives what `build` makes, if it is needed.
        """
        if self.engine_name != "openvino" or not _computed(cuts) or self._is_saved(cuts):
            return
        from flowers.inference.conversion import convert
        from flowers.inference.openvino_engine import NETWORK

        uri = self._uri(cuts)
        folder = storage.working_folder(uri)
        try:
            convert(network(), functools.partial(self._function, cuts=cuts), self.image_size, folder)
            hashes = {name: storage.file_sha256(os.path.join(folder, name)) for name in NETWORK}
            storage.write(os.path.join(folder, _MANIFEST), json.dumps(hashes, indent=2).encode())
            with storage.enough_space(f"the converted network {uri}"):
                storage.publish(folder, uri, last=_MANIFEST)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def engine(self, cuts: Sequence[str], threads: int) -> Engine | None:
        """The network compiled for this machine, an output a cut other than "pixels"; None if no cut is.

        Args:
            cuts: its outputs.
            threads: that OpenVINO computes with.

        Raises:
            DamagedFile: what `prepare` saved is damaged or gone.
        """
        if not _computed(cuts):
            return None
        if self.engine_name == "tensorflow":
            from flowers.inference.tensorflow_engine import TensorFlowEngine

            return TensorFlowEngine(self._function(self.build(), cuts), self.image_size, (BATCH,))
        from flowers.inference.openvino_engine import OpenVINOEngine

        with storage.local_files(self._uri(cuts), self._hashes(cuts)) as folder:
            return OpenVINOEngine(folder, (CPU_BATCH,), self.precision, threads)

    def _function(self, network: Any, cuts: Sequence[str]) -> Callable[[Any], list[Any]]:
        from flowers.model.cuts import below

        part, wanted = below(network, self.backbone, _computed(cuts)), _computed(cuts)

        def forward(pixels: Any) -> list[Any]:
            outputs = part(pixels, training=False)
            return [outputs[cut] for cut in wanted]

        return forward

    def _uri(self, cuts: Sequence[str]) -> str:
        # Every precision is converted from float32.
        parts = [self.backbone, self.weights, self.image_size, *_computed(cuts)]
        return storage.join(self.folder, hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16])

    def _is_saved(self, cuts: Sequence[str]) -> bool:
        try:
            with storage.local_files(self._uri(cuts), self._hashes(cuts)):
                return True
        except DamagedFile:
            return False

    def _hashes(self, cuts: Sequence[str]) -> dict[str, str]:
        uri = storage.join(self._uri(cuts), _MANIFEST)
        try:
            return dict(json.loads(storage.read(uri)))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError) as error:
            raise DamagedFile(f"the converted network {uri} cannot be read: {error}") from error


def _computed(cuts: Sequence[str]) -> list[str]:
    """The cuts that the network computes: "pixels" are the photos as they are."""
    return [cut for cut in cuts if cut != PIXELS]
