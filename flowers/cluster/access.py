"""Access to Ray: which cluster a job joins, the token that its head asks for, and one for a Ray of a job's own."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flowers.errors import AccessDenied, FlowersError, InputError, first_line
from flowers.text import plain

if TYPE_CHECKING:
    from rich.console import Console

_CONNECT_S = 10
_DENIED = "UNAUTHENTICATED"  # gRPC's word for a token that is missing or wrong
_MODE, _TOKEN, _FILE, _HOME = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"
_GET_TOKEN = (
    f"`ray get-auth-token`, where the cluster was started, prints the right one: put it into {_HOME}, or into the "
    f"environment as {_TOKEN}"
)


def joined() -> str:
    """The cluster that a job joins, as RAY_ADDRESS names it; empty if it starts Ray for itself."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


def announce(out: Console) -> None:
    """Says which cluster the job joins; nothing if it starts Ray for itself."""
    if cluster := joined():
        out.print(f"joins the cluster at {plain(cluster)} (RAY_ADDRESS)", highlight=False, markup=False)


@contextmanager
def access(address: str) -> Iterator[str]:
    """What Ray is to know of tokens, in this process's environment, while it runs.

    A cluster that asks for a token gets the one that is there, also where RAY_ADDRESS is a HOST:PORT; Ray by itself
    sends it for `auto` only. A Ray of a job's own, where there is no token, gets one that nobody else knows: Ray would
    leave it as a file in the home folder, and from then on every `ray start` there would ask for it.

    Args:
        address: as `joined` gives it.

    Yields:
        HOST:PORT of the head; empty for a Ray of its own.

    Raises:
        InputError: the address is of a kind that no job can use.
        AccessDenied: the token is not the cluster's.
        FlowersError: there is no Ray at the address.
    """
    before = {name: os.environ.get(name) for name in (_MODE, _TOKEN)}
    mode, place = (before[_MODE] or "").strip().lower(), ""
    known = dict(before)
    if address:
        place = _place(address)
        token = _token() if mode in ("", "token") else ""
        if mode == "token" and not token:
            raise AccessDenied(f"{_MODE} is 'token', and there is no token here; {_GET_TOKEN}, or unset {_MODE}")
        _knock(address, place, token)
        if token:
            # A process that has a token wants to see it from all others, and those of an open cluster have none.
            known[_MODE] = "token" if guarded(place) else "disabled"
    elif mode in ("", "token") and not _token():
        known |= {_MODE: "token", _TOKEN: secrets.token_hex(32)}
    _tell(known)
    try:
        yield place
    finally:
        _tell(before)


def _tell(values: dict[str, str | None]) -> None:
    """Changes the environment, and lets Ray's C++ code read it again."""
    if all(os.environ.get(name) == value for name, value in values.items()):
        return
    import ray

    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    ray._raylet.Config.initialize("")


def _token() -> str:
    """The token that Ray finds here, or nothing."""
    import ray

    loader = ray._raylet.AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return str(loader.get_raw_token(ignore_auth_mode=True)) if loader.has_token(ignore_auth_mode=True) else ""
    except ray.exceptions.AuthenticationError as error:
        raise AccessDenied(
            f"the token for Ray cannot be read from {_origin()} ({first_line(error).partition('. ')[0]}); correct or "
            f"unset {_FILE}"
        ) from error


def _origin() -> str:
    """Where Ray takes its token from."""
    file = os.environ.get(_FILE)
    return f"the environment ({_TOKEN})" if os.environ.get(_TOKEN) else f"{file} ({_FILE})" if file else _HOME


def _place(address: str) -> str:
    """HOST:PORT of the head."""
    if address == "auto":
        from ray._private import services

        services.find_gcs_addresses.cache_clear()
        services.logger.setLevel(logging.ERROR)  # of several heads it takes the latest, which is what `auto` means
        try:
            return str(services.canonicalize_bootstrap_address(address))
        except ConnectionError as error:
            raise FlowersError(
                "RAY_ADDRESS is 'auto', but no Ray runs on this machine; start it (ray start --head), give HOST:PORT "
                "of another head, or unset RAY_ADDRESS to run on this machine alone"
            ) from error
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        instead = "; a program outside the cluster submits its job (ray job submit)" if "://" in address else ""
        raise InputError(
            f"RAY_ADDRESS: received {address!r}, required is HOST:PORT of the head (that of `ray start --port`, 6379 "
            f"by default) on a machine of the cluster, auto, or local{instead}"
        )
    return address


def _knock(address: str, place: str, token: str) -> None:
    """Asks the head whether it is there and lets this token in: Ray itself would try for 20 s and say only that it did.

    Raises:
        AccessDenied: the token is missing or wrong.
        FlowersError: nobody is there, or no head of Ray.
    """
    shown = f"RAY_ADDRESS is {address!r}"
    host, _, port = place.rpartition(":")
    instead = "start the cluster, correct the address, or unset RAY_ADDRESS to run on this machine alone"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise FlowersError(f"{shown}, but nobody answers at {place} ({why}); {instead}") from error
    said = _ask(place, token)
    if said == "OK":
        return
    if said != _DENIED:
        raise FlowersError(
            f"{shown}, but what answers there is no head of Ray ({said}); give the port of `ray start --port`, 6379 by "
            f"default, or {instead}"
        )
    mode = os.environ.get(_MODE, "")
    if token:
        wrong = f"does not take the token of {_origin()}; {_GET_TOKEN}"
    elif mode and mode != "token":
        wrong = f"asks for a token, and with {_MODE}={mode} none is sent; unset {_MODE}"
    else:
        wrong = f"asks for a token, and there is none here; {_GET_TOKEN}"
    raise AccessDenied(f"{shown}: the cluster {wrong}")


def guarded(place: str) -> bool:
    """Whether the head at HOST:PORT asks for a token."""
    return _ask(place, "") == _DENIED


def _ask(place: str, token: str) -> str:
    """Asks a head whether it is alive, the first thing that Ray's own programs ask; the name of gRPC's status code."""
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            # An empty message asks for nothing in particular.
            ask(b"", timeout=_CONNECT_S, metadata=[("authorization", f"Bearer {token}")] if token else None)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
