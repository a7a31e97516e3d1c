"""Parsing of JSON bodies: large ones in a process of their own, as Python can do nothing else while it parses one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from flowers.bounded import BoundedProcess, Crashed, Exhausted
from serving.service import BadRequest, TooLarge

T = TypeVar("T")

# What is parsed here in some milliseconds; a photo as base64 is one element, and one as numbers is 150,000.
_BYTES, _ELEMENTS = 1 << 20, 20_000
# 64 photos as nested numbers take half of both.
_CPU_S, _MEMORY = 4.0, 768 << 20

_process = BoundedProcess(_CPU_S, _MEMORY)
_thread = ThreadPoolExecutor(1, "parse")


async def parse(function: Callable[..., T], text: bytes, *arguments: Any) -> T:
    """What `function` makes of JSON; it, its other arguments and its result have to be known to pickle.

    Raises:
        TooLarge: parsing takes too long, or too much memory.
        ServingError: what the function raised.
    """
    if len(text) <= _BYTES and text.count(b",") + text.count(b"[") + text.count(b"{") <= _ELEMENTS:
        return function(text, *arguments)
    try:
        return await asyncio.get_running_loop().run_in_executor(_thread, _process.call, function, text, *arguments)
    except Exhausted as error:
        raise TooLarge("the JSON takes too long to parse, or too much memory; send fewer photos, or bytes") from error
    except Crashed as error:
        raise BadRequest(f"the JSON cannot be parsed: {error}") from error
