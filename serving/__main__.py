"""The command that serves on this machine: `python -m serving --bundle runs/NAME`, or `make serve`."""

from __future__ import annotations

import functools
import http.client
import importlib
import json
import logging
import os
import queue
import shlex
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from flowers import cli, storage
from flowers.bundle import Bundle, read_manifest
from flowers.cluster.access import joined
from flowers.cluster.placement import in_words, on_device, require_gpu, require_room
from flowers.cluster.session import background, lost, ray_session
from flowers.errors import FlowersError, InputError
from flowers.inference.engine import resolve_engine
from flowers.published import find, wanted
from flowers.runs import Run, finished_runs
from serving.http.port import Port, hold
from serving.options import RUNS, Address, ServeOptions, Tuning

_HELP = f"""Serve a trained classifier over HTTP: a page for people, /predict for programs, and the protocols of
TensorFlow Serving (/v1), the Open Inference Protocol (/v2) and ML.NET's sample.

\b
The newest run of ./{RUNS}:   python -m serving
A run, a bundle, models:    python -m serving --bundle {RUNS}/NAME
"""
_RAY = {
    # Ray Serve would run our code in a loop of its own, lest it block: ours does not, and changing loops costs time.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Ray gives its workers a low priority, so that they disturb nobody. Here they are what the machine is for.
    "RAY_worker_niceness": "0",
}
# Ray's own time-out comes so much later than ours, which is the one that clients cannot change.
_SPARE_S = 5
_LOOK_S, _REFUSED_LOOKS = 1.0, 3  # between looks at Ray
_ANSWER_S = 30
# How a trace names an error of the library.
_ERRORS = f"{FlowersError.__module__}."
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def newest_run(folder: str = RUNS) -> str:
    """The run of `folder` that was finished last.

    Raises:
        InputError: there is none.
    """
    finished = finished_runs(folder)
    if not finished:
        raise InputError(
            f"there is no finished run in {os.path.abspath(folder)}: train one (make train), or name what to serve "
            "with --bundle"
        )
    return finished[-1].uri


def build_options(given: Mapping[str, Any]) -> ServeOptions:
    """Options that were given, over the defaults.

    Raises:
        InputError: one is wrong.
    """
    tuning = {name: given[name] for name in Tuning.model_fields if name in given}
    plain = {name: given[name] for name in ServeOptions.model_fields if name in given}
    chosen = ServeOptions(**{"bundle": "", **plain, "tuning": tuning})
    return chosen.replace(bundle=storage.absolute(chosen.bundle or newest_run()))


def own_hosts(host: str) -> str:
    """The names that a request to a server at `host` of this machine may have, for `allowed_hosts`."""
    machine = socket.gethostname().lower()
    return ",".join(dict.fromkeys((host.strip("[]").lower(), machine, f"{machine}.local", socket.getfqdn().lower())))


@cli.command(_HELP, ServeOptions, Address)
def main(**values: Any) -> None:
    """Parses, starts, waits."""
    out = cli.console(bool(values["verbose"]))
    address = Address(**cli.given(values, Address))
    options = build_options(cli.given(values, ServeOptions))
    if options.allowed_hosts is None:
        options = options.replace(allowed_hosts=own_hosts(address.host))
    from serving.http.middleware import read_tokens

    tokens = read_tokens(options.tokens_file)
    read_tokens(options.admin_token_file)
    found = find(options.bundle, options.name)
    say = functools.partial(out.print, highlight=False, markup=False)
    number = wanted(found, options.version)
    say(f"Serving {options.bundle}, version {number}")
    if cluster := joined():
        say(f"It joins the cluster at {cluster} (RAY_ADDRESS).")
    with suppress(FlowersError, KeyError):  # the replica says what is wrong
        if not Bundle(found[number], read_manifest(found[number])).converted:
            say("It is of an earlier version of flowers: its network is converted at each start, which takes seconds.")
    if address.host not in _LOOPBACK:
        who = "anyone with a token" if tokens else "ANYONE, as there is no --tokens-file,"
        say(f"WARNING: listening at {address.host}: {who} who reaches this machine can ask.")
    proxy = options.max_replicas is not None
    with hold(address.host, address.port, proxy) as port, _served(options, address, port, say):
        _say_what_was_refused(options.name, address, tokens[0] if tokens else b"", say)
        url = f"http://{_reachable(address.host)}:{address.port}"
        say(f"ready     {url}/    (the API: {url}/docs{', with a token' if tokens else ''})")
        say(f"try       {_curl(options.bundle, url, bool(tokens))}")
        _wait_for_the_end(address if proxy else None)
        say("Stopping: what was accepted is answered.")


def _reachable(host: str) -> str:
    """The host of a URL at which a server that listens at `host` is reached from this machine."""
    peer = _peer(host)
    return f"[{peer.replace('%', '%25')}]" if ":" in peer else peer


def _peer(host: str) -> str:
    """The address that a connection to it is made to."""
    plain = host.strip("[]")
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(plain, plain)


def _wait_for_the_end(proxy: Address | None) -> None:
    """Waits for Ctrl-C, SIGTERM or the end of the terminal; Ray has handlers of its own, which end the process at once.

    Args:
        proxy: where Ray Serve's proxy listens, if there is one: Ray takes a minute to find out that it has ended.

    Raises:
        FlowersError: Ray does not run any more, so that nothing would start a replica again, or the proxy has ended.
    """
    heard: list[int] = []
    told: queue.SimpleQueue[int] = queue.SimpleQueue()  # a handler may put to it; an event's lock may just be held

    def hear(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            cli.leave_terminal()
        if heard and number == signal.SIGINT:
            raise KeyboardInterrupt  # whoever presses Ctrl-C twice does not want to wait
        heard.append(number)
        told.put(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, hear)
    refused = 0
    while True:
        with suppress(queue.Empty):
            told.get(timeout=_LOOK_S)
            return
        what = lost()
        refused = refused + 1 if proxy and _refuses(proxy) else 0
        if refused == _REFUSED_LOOKS:
            what = "Ray Serve's proxy"
        if what:
            raise FlowersError(f"{what} has ended, so the server ends; whatever watches it should start it again")


def _refuses(address: Address) -> bool:
    """Whether nobody takes connections there."""
    try:
        socket.create_connection((_peer(address.host), address.port), timeout=_LOOK_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # it is busy
        return False
    return False


@contextmanager
def _served(options: ServeOptions, address: Address, port: Port, say: Callable[[str], None]) -> Iterator[None]:
    """The server; what was accepted is answered before it ends."""
    from serving.http.proxy import CALLBACK
    from serving.metrics import FOLDER

    os.environ.update({**_RAY, **CALLBACK})  # read when Ray Serve is imported
    imported = background(functools.partial(importlib.import_module, "serving.app"), "import Ray Serve").result
    session = ray_session(address.verbose, options.device, data=False)
    with tempfile.TemporaryDirectory(prefix="flowers-metrics-") as folder, session:
        _say_device(options, say)
        os.environ[FOLDER] = folder
        imported()  # while Ray started
        from ray import serve

        from serving.app import build_app, build_listening_app

        _check_room(options)
        if not address.verbose:
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
        logs = {"enable_access_log": address.verbose}
        try:
            try:
                if options.max_replicas is None:
                    serve.start(proxy_location="Disabled", logging_config=logs)
                    app = build_listening_app(options, port.path)
                else:  # Ray Serve adds replicas by the requests that its proxies see
                    http = {"host": address.host, "port": address.port}
                    timeout = {"request_timeout_s": options.timeout_s + _SPARE_S}
                    serve.start(http_options={**http, **timeout}, logging_config=logs)
                    app = build_app(options)
                serve.run(app, name=options.name, route_prefix="/")
            except RuntimeError as error:
                raise _why_not_deployed(options.name, error) from error
            yield
            port.close()
            serve.delete(options.name)  # returns when all replicas have answered what they took
        finally:
            if not lost():
                serve.shutdown()


def _say_device(options: ServeOptions, say: Callable[[str], None]) -> None:
    """Says what computes; raises NoRoom if there is no GPU, though one was asked for: Ray would wait for it."""
    from flowers.cluster.nodes import cluster_nodes

    nodes = cluster_nodes()
    if options.gpus:
        require_gpu("--gpus", f"{options.gpus:g}", nodes)
    usable = on_device(nodes, options.device if options.replica_gpus else "cpu")
    engine, why = resolve_engine(options.engine, options.replica_gpus)
    say(f"device    {in_words(usable, options.device)}; {engine}: {why}")


def _check_room(options: ServeOptions) -> None:
    """Raises NoRoom if the replicas do not fit on this machine, whose port they share; a cluster's nodes may come."""
    from flowers.cluster.nodes import own_node
    from serving.app import with_cpus

    if options.max_replicas is None or not joined():
        require_room(options.replicas, with_cpus(options).cpus, options.replica_gpus, [own_node()])


def _say_what_was_refused(name: str, address: Address, token: bytes, say: Callable[[str], None]) -> None:
    """Says that another version answers than the one that should."""
    connection = http.client.HTTPConnection(_peer(address.host), address.port, timeout=_ANSWER_S)
    with closing(connection):
        headers: dict[str, str | bytes] = {"Host": "localhost", "Authorization": b"Bearer " + token}
        connection.request("GET", f"/v2/models/{name}", headers=headers)
        now = json.loads(connection.getresponse().read())
    if error := now["parameters"]["last_reload_error"]:
        say(f"WARNING: version {now['versions'][0]} answers: {error}")


def _why_not_deployed(name: str, error: RuntimeError) -> FlowersError:
    """What a replica's constructor raised, in a line: Ray Serve's own error only says that there was one."""
    from ray import serve

    application = serve.status().applications.get(name)
    replicas = [deployment.message for deployment in application.deployments.values()] if application else []
    return _replica_error("\n".join(filter(None, replicas)) or str(error))


def _replica_error(text: str) -> FlowersError:
    """The error of the library in what Ray Serve tells of a replica, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.removeprefix(_ERRORS) for line in lines if line.startswith(_ERRORS)]
    kind, _, said = own[-1].partition(": ") if own else ("", "", (lines or ["no reason was given"])[-1])
    made = InputError if kind in ("InputError", "NoRoom") else FlowersError
    return made(f"the server did not start: {said}")


def _curl(bundle: str, address: str, token: bool) -> str:
    """A line that asks the server about a photo: one of the run's test photos, if they are here."""
    photo = "PHOTO.jpg"
    report = Run(bundle).report
    if storage.exists(report):
        found = json.loads(storage.read(report))
        source = found.get("data", {}).get("source", "")
        paths = [os.path.join(source, shown["path"]) for shown in found.get("predictions", [])]
        photo = next(filter(os.path.exists, paths), photo)
    header = ' -H "Authorization: Bearer $TOKEN"' if token else ""
    return f"curl -s -H 'Content-Type: image/jpeg'{header} --data-binary {shlex.quote('@' + photo)} {address}/predict"


if __name__ == "__main__":
    cli.run_command(main, "python -m serving")
