"""Versions of the model: which bundles there are, the one that answers, and how a new one replaces it.

A new version is loaded, verified and warmed beside the old one, and then takes its place in one assignment. One that
cannot be loaded is refused: the old one goes on answering.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass

from flowers import published, storage
from flowers.bounded import limited_memory
from flowers.bundle import load_bundle
from flowers.errors import FlowersError, first_line
from flowers.inference.engine import resolve_engine
from flowers.predictor import Predictor
from serving.inference.attempts import Attempts
from serving.options import ServeOptions

# Memory that a network may take while it is compiled: some for the engine, and its weights in several forms.
_SPARE_BYTES, _COPIES = 1 << 30, 8


@dataclass(frozen=True)
class LoadedModel:
    """A version that is loaded and warm.

    Attributes:
        number: of the version.
        state: of its files, as `_state` gives it.
        predictor: runs it.
        pace: seconds a photo took in a large batch while nobody asked.
    """

    number: int
    state: str
    predictor: Predictor
    pace: float = 0.0


class Versions:
    """The version that answers.

    Args:
        options: where to look.
        attempts: to load a version, of all replicas on this machine.

    Raises:
        FlowersError: no version can be loaded.
    """

    def __init__(self, options: ServeOptions, attempts: Attempts) -> None:
        self._options = options
        self._attempts = attempts
        self._changing = threading.Lock()
        self._refused: dict[int, str] = {}
        self._found: dict[int, str] = {}
        self.error: str | None = None
        self.current = self._first()

    def refresh(self, again: bool = False) -> bool:
        """Looks for the version that should answer, and lets it if it can be loaded; blocks while it is loaded.

        Args:
            again: try one that was refused before, though its files are the same.

        Returns:
            Whether another one answers now. Whatever goes wrong is in `error`.
        """
        with self._changing:
            try:
                found = self._find()
                number = published.wanted(found, self._options.version)
                state = _state(found[number])
                if state == self.current.state and number == self.current.number:
                    self.error = None
                    return False
                if self._refused.get(number) == state and not again:
                    return False
                self._refused[number] = state
                if self._attempts.ended_a_process(_named(found[number], state)) and not again:
                    raise FlowersError(_fatal(number))
                self.current = self._load(number, found[number], state)
                self.error = None
                _collect_garbage()
                return True
            except Exception as error:  # whatever it is, the old version answers
                self.error = first_line(error)
                return False

    def pin(self, number: int | None) -> None:
        """Writes beside the versions which one all servers of them should take; None: the newest.

        Raises:
            InputError: there are no numbered versions, or not this one.
            OSError: the folder cannot be written.
        """
        published.pin(self._find(), number)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The versions there were at the last look, ascending."""
        return tuple(self._found)

    def _find(self) -> dict[int, str]:
        self._found = published.find(self._options.bundle, self._options.name, frozenset(self._found.values()))
        return self._found

    def _first(self) -> LoadedModel:
        found = self._find()
        chosen = published.wanted(found, self._options.version)
        others, refused = sorted(set(found) - {chosen}, reverse=True), list[FlowersError]()
        for number in (chosen, *others):
            state = _state(found[number])
            try:
                if others and self._attempts.ended_a_process(_named(found[number], state)):
                    raise FlowersError(_fatal(number))
                loaded = self._load(number, found[number], state)
                _collect_garbage()
                return loaded
            except FlowersError as error:
                self._refused[number] = state
                self.error = self.error or first_line(error)
                refused.append(error)
        raise refused[0]

    def _load(self, number: int, uri: str, state: str) -> LoadedModel:
        try:
            bundle = load_bundle(uri, self._options.max_bundle_bytes)
            with self._attempts.noted(_named(uri, state)), limited_memory(_SPARE_BYTES + _COPIES * bundle.size):
                predictor = Predictor(
                    bundle,
                    self._options.max_pixels,
                    self._options.tuning.max_batch_size,
                    resolve_engine(self._options.engine, self._options.replica_gpus)[0],
                    max(1, int(self._options.cpus)),
                    unknown=self._options.unknown,
                )
                pace = predictor.warm()
                predictor.check()
        except FlowersError as error:
            raise type(error)(f"version {number} is refused: {error}") from error
        except MemoryError as error:
            raise FlowersError(f"version {number} is refused: it takes much more memory than it has bytes") from error
        except Exception as error:
            raise FlowersError(f"version {number} is refused: {first_line(error)}") from error
        return LoadedModel(number, state, predictor, pace)


def _named(uri: str, state: str) -> str:
    """What tells the files of a version from all others."""
    return f"{uri}\n{state}"


def _fatal(number: int) -> str:
    return (
        f"version {number} is refused: a replica ended while it loaded it, perhaps for lack of memory; "
        "POST /admin/reload tries again"
    )


def _collect_garbage() -> None:
    """Frees what an old version held, and spares the collector the objects of the new one: they stay."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _state(uri: str) -> str:
    """Names, sizes and times of a bundle's files: what changes when it is replaced."""
    return "; ".join(storage.stamps(uri))
