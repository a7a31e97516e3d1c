"""A run: a folder with all that one training leaves; its paths, its identity and its status.

The identity makes the same command go on with it, and refuses another one. Nobody else joins a path inside a run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from flowers import locks, storage
from flowers.config import TrainConfig
from flowers.data.ledger import Ledger
from flowers.data.split import SUBSETS
from flowers.errors import DamagedFile, FlowersError, InputError, first_line

# A folder that holds these is a run.
FILES = frozenset({"config.json", "ledger.parquet", "split.parquet"})
# What a run and an evaluation are told in.
PAGE, REPORT = "report.html", "report.json"
State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Run:
    """The folder of a run.

    Attributes:
        uri: where it lies.
    """

    uri: str

    @classmethod
    def of(cls, config: TrainConfig) -> Run:
        """The run that a command is about."""
        return cls(storage.join(storage.absolute(config.storage), config.run_name()))

    @property
    def name(self) -> str:
        """Its name: the last part of its URI."""
        return storage.name(self.uri)

    @property
    def config(self) -> str:
        """config.json: the options that decide the result; what makes the folder a run."""
        return storage.join(self.uri, "config.json")

    @property
    def split(self) -> str:
        """split.parquet: which photo is for training, validation or test."""
        return storage.join(self.uri, "split.parquet")

    @property
    def ledger(self) -> str:
        """ledger.parquet: every file that was found, and what became of it."""
        return storage.join(self.uri, "ledger.parquet")

    @property
    def metrics(self) -> str:
        """metrics.jsonl: a line an epoch."""
        return storage.join(self.uri, "metrics.jsonl")

    @property
    def checkpoints(self) -> str:
        """checkpoints/: a folder an epoch."""
        return storage.join(self.uri, "checkpoints")

    @property
    def tensorboard(self) -> str:
        """tensorboard/: the metrics again, for TensorBoard."""
        return storage.join(self.uri, "tensorboard")

    @property
    def contact_sheet(self) -> str:
        """augmented.jpg: training photos as augmentation shows them."""
        return storage.join(self.uri, "augmented.jpg")

    @property
    def bundle(self) -> str:
        """best/: the bundle of the best epoch."""
        return storage.join(self.uri, "best")

    @property
    def page(self) -> str:
        """report.html."""
        return storage.join(self.uri, PAGE)

    @property
    def report(self) -> str:
        """report.json, written last: what marks a run as finished."""
        return storage.join(self.uri, REPORT)

    @property
    def suspects(self) -> str:
        """suspects.csv: photos whose labels are doubtful, and what was decided of them."""
        return storage.join(self.uri, "suspects.csv")

    @property
    def suspects_page(self) -> str:
        """suspects.html: the same, to look at and decide."""
        return storage.join(self.uri, "suspects.html")

    def evaluation(self, name: str) -> str:
        """evaluations/<name>/: its bundle on other photos."""
        return storage.join(self.uri, "evaluations", name)

    def fold(self, number: int) -> Run:
        """folds/<number>/: its training on other sides of a split, counted from 1; a run without options of its own."""
        return Run(storage.join(self.uri, "folds", str(number)))

    def trial(self, number: int) -> Run:
        """trials/<number>/: its training with other options, counted from 1; the same kind of folder as a fold's."""
        return Run(storage.join(self.uri, "trials", str(number)))

    @property
    def outcome(self) -> str:
        """outcome.json of a fold or trial, written last: what came out of it."""
        return storage.join(self.uri, "outcome.json")

    @property
    def status(self) -> str:
        """status.json: whether it runs, is done, failed or was stopped; a process that is killed leaves "running"."""
        return storage.join(self.uri, "status.json")

    @property
    def lock(self) -> str:
        """Its lock, beside the folder: it outlives --fresh."""
        return locks.beside(self.uri)

    @property
    def uses(self) -> str:
        """.uses: the caches and photos that it works with, a URI a line; they are not to be cleaned away meanwhile."""
        return self.note("uses")

    def note(self, file: str) -> str:
        """A working file, hidden, for the workers of this run."""
        return storage.join(self.uri, f".{file}")

    def finished(self) -> bool:
        """Whether it has its report."""
        return storage.exists(self.report)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps all other processes from writing into the folder.

        Raises:
            InputError: another one is at it, or the storage cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(storage.no_empty_folders(self.uri))
            with _writable(self.uri), storage.enough_space(self.lock):
                storage.make_folder(storage.parent(self.uri))
                try:
                    stack.enter_context(locks.hold(self.lock))
                except locks.InUse as error:
                    raise InputError(
                        f"--name: the run {self.name!r} is in use by {error}; wait until that ends, or choose another "
                        "--name"
                    ) from error
            try:
                yield
            finally:
                with suppress(OSError):
                    storage.delete_file(self.uses)

    def use(self, uris: Iterable[str]) -> None:
        """Notes in .uses what the run works with while it is held."""
        storage.write(self.uses, "".join(f"{uri}\n" for uri in uris).encode())

    def used(self) -> list[str] | None:
        """What it noted; None if it has not come so far."""
        return storage.read(self.uses).decode().splitlines() if storage.exists(self.uses) else None

    def open(self, config: TrainConfig) -> None:
        """Makes or finds the folder; what it is a run of is noted by `begin`, once the photos are known.

        Raises:
            InputError: the folder holds a run with other options, or something that is no run; or what --fresh deletes
                is needed.
        """
        own = storage.name(self.config)
        with _writable(self.uri), storage.enough_space(self.uri):
            found = [name for name in storage.names(self.uri) if not storage.is_left_over(name)]
            if config.fresh and own in found:
                if config.relabel and storage.inside(storage.absolute(config.relabel), self.uri):
                    raise InputError(
                        f"--relabel: {config.relabel} lies in the folder that --fresh deletes; move it elsewhere, or "
                        "choose another --name"
                    )
                storage.delete(self.uri, last=own)
                found = []
            before_begin = {storage.name(path) for path in (self.split, self.ledger, self.status)}
            if own not in found and [name for name in found if name[0] != "." and name not in before_begin]:
                raise InputError(f"--name: {self.uri} exists and is not a run of this program; choose another name")
            if own in found:
                self.compare(config)
            else:
                storage.make_folder(self.uri)
            storage.delete_file(self.uses)

    def compare(self, config: TrainConfig) -> None:
        """Makes sure that it is a run of these options.

        Raises:
            InputError: it has others, or its config.json cannot be read.
        """
        try:
            before = dict(json.loads(storage.read(self.config))["options"].items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.config} is damaged; --fresh starts over") from error
        if changes := config.differences(before):
            raise InputError(
                f"the run {self.name!r} exists with other options ({'; '.join(changes)}); choose another --name, or "
                "--fresh to start over"
            )

    def begin(self, config: TrainConfig, ledger: Ledger) -> None:
        """Writes split.parquet, ledger.parquet and, last, config.json: from here on the folder is this run's.

        Raises:
            InputError: the run has a split already, and the photos or their labels have changed since, or it cannot
                be read.
        """
        storage.sweep(self.uri)
        begun = storage.exists(self.config)
        if begun:
            self._check_photos(ledger)
            storage.delete_file(self.report)  # of a bundle that is damaged, or damaged itself: it is made again
        for uri, table in ((self.ledger, ledger.table), (self.split, ledger.split())):
            sink = io.BytesIO()
            pq.write_table(table, sink, compression="zstd")
            storage.write(uri, sink.getvalue())
        if not begun:
            body = {"options": config.identity(), "created": now()}
            storage.write(self.config, json.dumps(body, indent=2).encode())

    def assigned(self) -> dict[bytes, int]:
        """Subsets of its photos by their digest, if it has begun: it goes on with them whatever defaults are now."""
        if not storage.exists(self.config):
            return {}
        with suppress(InputError):  # a damaged one is named by `begin`
            return read_split(self.split)
        return {}

    def _check_photos(self, ledger: Ledger) -> None:
        try:
            before = _photos(pq.read_table(io.BytesIO(storage.read(self.split))))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(f"{self.split} is damaged ({first_line(error)}); --fresh starts over") from error
        found = _photos(ledger.split())
        if before != found:
            both = before.keys() & found.keys()
            relabelled, moved = (sum(before[photo][at] != found[photo][at] for photo in both) for at in (0, 1))
            raise InputError(
                f"the photos changed since this run began ({len(found.keys() - before.keys())} new, "
                f"{len(before.keys() - found.keys())} gone, {relabelled} relabelled, {moved} now in another subset); "
                "choose another --name (--split-file keeps the known photos in their subsets), or --fresh to start over"
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Notes in status.json that the run is going on, and how that ended; of one that is refused nothing stays."""
        self._note_status("running")
        state: State | None = "failed"
        why = ""
        try:
            yield
            state = "done"
        except FlowersError as error:
            why = str(error)
            if isinstance(error, InputError) and not storage.exists(self.config):
                state = None
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise
        except BaseException:
            state, why = "stopped", "the same command goes on"
            raise
        finally:
            with suppress(OSError):  # a disk that is full, say: what ended the run is said all the same
                if state is None:
                    storage.delete_file(self.status)
                else:
                    self._note_status(state, why)

    def killed(self) -> str | None:
        """Which process a run lost that says it is running, though nobody is at it; None of any other run."""
        before = self._status()
        if before.get("state") != "running" or locks.holder(self.lock) or self._status() != before:
            return None
        return f"process {before.get('pid')} on {before.get('host')}, at it since {before.get('at')}"

    def _status(self) -> dict[str, object]:
        """What status.json says; nothing if it is not there, or damaged."""
        try:
            return dict(json.loads(storage.read(self.status)))
        except (OSError, ValueError, TypeError):
            return {}

    def _note_status(self, state: State, why: str = "") -> None:
        """Writes status.json: the state, why, since when, and the process that says so."""
        body = {"state": state, "why": why, "at": now(), "host": socket.gethostname(), "pid": os.getpid()}
        storage.write(self.status, json.dumps(body, indent=2).encode())


@contextmanager
def _writable(uri: str) -> Iterator[None]:
    """Names a storage in which nothing can be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--storage: {uri} cannot be written: {error.strerror or error}") from error


def finished_runs(folder: str) -> list[Run]:
    """The finished runs of a local folder of runs, the newest last."""
    runs = [Run(storage.join(folder, name)) for name in storage.names(folder)]
    return sorted(filter(Run.finished, runs), key=lambda run: os.path.getmtime(run.report))


def runs_of(folder: str) -> list[Run]:
    """The runs of a folder of runs."""
    runs = [Run(storage.join(folder, entry.name)) for entry in storage.entries(folder) if entry.folder]
    return [run for run in runs if storage.exists(run.config)]


def killed_runs(folder: str) -> dict[str, str]:
    """The runs of a folder of runs that were killed, by name, and which process each lost."""
    runs = [Run(storage.join(folder, entry.name)) for entry in storage.entries(folder) if entry.folder]
    return {run.name: who for run in runs if (who := run.killed())}


def runs_in_progress(folder: str) -> list[Run]:
    """The runs of a folder of runs that a process is at now."""
    found = (re.fullmatch(r"\.(.+)\.lock(\.[0-9a-f]{32})?", name) for name in storage.names(folder))
    runs = [Run(storage.join(folder, name)) for name in sorted({match[1] for match in found if match})]
    return [run for run in runs if locks.holder(run.lock)]


def read_split(uri: str) -> dict[bytes, int]:
    """Subsets of the photos of an earlier run by their digest.

    Raises:
        InputError: the file is missing or is no split.parquet.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read(uri)))
        digests = table["sha256"].cast(pa.binary(32)).to_pylist()
        subsets = [SUBSETS.index(subset) for subset in table["split"].to_pylist()]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"--split-file: {uri} is not the split.parquet of a run: {first_line(error)}") from error
    return dict(zip(digests, subsets, strict=True))


def read_ledger(run: Run) -> pa.Table:
    """The ledger of a run (`flowers.data.ledger.Ledger.table`); what earlier versions did not write is null.

    Raises:
        DamagedFile: it cannot be read.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read(run.ledger)))
        for name in ("group", "like", "was", "decision"):
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        return table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedFile(f"{run.ledger} cannot be read: {first_line(error)}") from error


def split_sha256(ledger: Ledger) -> str:
    """Hash of which photo is in which subset, whatever the files are called."""
    digest = hashlib.sha256()
    for sha256, (label, subset) in _photos(ledger.split()).items():
        digest.update(sha256 + f"\0{label}\0{subset}\n".encode())
    return digest.hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _photos(split: pa.Table) -> dict[bytes, tuple[str, str]]:
    """Label and subset of each photo by its digest, in the order of the digests."""
    digests, *columns = (split[name].to_pylist() for name in ("sha256", "label", "split"))
    return dict(zip(digests, zip(*columns, strict=True), strict=True))
