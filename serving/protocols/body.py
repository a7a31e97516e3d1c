"""Request bodies: raw bytes, JSON, base64 and the files of a form; whatever is malformed is a ServingError."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from contextlib import aclosing
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.service import BadRequest, ServingError, TooLarge


class UnsupportedMedia(ServingError):
    """The body is of a type or encoding that is not read here."""

    status, code = 415, "unsupported_media_type"


class FormFile(NamedTuple):
    """A file of a form."""

    field: str
    name: str
    data: bytes


def media_type(request: Request) -> str:
    """The Content-Type in lower case without its parameters, "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request) -> bytes:
    """The bytes of the body.

    Raises:
        UnsupportedMedia: they are compressed.
    """
    _check_encoding(request)
    return await request.body()


async def read_files(request: Request, limit: int) -> list[FormFile]:
    """The files of a multipart form, in order, 0 to `limit`; its other fields are left out.

    Raises:
        UnsupportedMedia: the body is compressed or no multipart form.
        BadRequest: the form is malformed or ends early.
        TooLarge: it has more than `limit` files.
    """
    _check_encoding(request)
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia(f"Content-Type is {shown(media_type(request))}, required is multipart/form-data")
    try:
        async with aclosing(request.stream()) as stream:
            parser = _FormParser(request.headers, stream, max_files=math.inf)
            parser.limit = limit
            form = await parser.parse()
        files = [
            FormFile(field, part.filename or "", await part.read())
            for field, part in form.multi_items()
            if isinstance(part, UploadFile)
        ]
        await form.close()
    except MultiPartException as error:
        raise BadRequest(f"the form is malformed: {error.message}") from error
    except ValueError as error:  # a charset that Python knows and cannot decode names with, e.g. "undefined"
        raise BadRequest("the form has a field name that its charset cannot decode") from error
    if not parser.complete:
        raise BadRequest("the form ends before its closing boundary")
    return files


# A file's name in a charset of its own (RFC 5987), and any other beside it.
_EXTENDED_NAME = re.compile(rb"(?i);\s*filename\*\s*=\s*(?P<charset>utf-8|iso-8859-1)'[^']*'(?P<name>[^;\s\"]*)")
_ANY_NAME = re.compile(rb'(?i);\s*filename\*?\s*=\s*("(\\.|[^"\\])*"|[^;\s]*)')


class _FormParser(MultiPartParser):
    """A parser that keeps files in memory, as the size of a body is limited before, and counts them as they come."""

    spool_max_size = sys.maxsize
    limit = 0
    found = 0
    complete = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        if part.content_disposition and (found := _EXTENDED_NAME.search(part.content_disposition)):
            name = unquote_to_bytes(found["name"]).decode(found["charset"].decode("ascii"), "replace")
            rest = _ANY_NAME.sub(b"", part.content_disposition)
            escaped = name.replace("\\", "\\\\").replace('"', '\\"')
            part.content_disposition = rest + f'; filename="{escaped}"'.encode()
        super().on_headers_finished()

    def on_part_end(self) -> None:
        super().on_part_end()
        self.found += isinstance(self.items[-1][1], UploadFile)
        if self.found > self.limit:
            raise TooLarge(f"more than {self.limit} files; a request may have at most {self.limit}")

    def on_end(self) -> None:
        self.complete = True


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise UnsupportedMedia(f"Content-Encoding is {shown(encoding)}: send the body uncompressed")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_number)


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that UTF-8 bytes are; all of its numbers may be huge, and any string a lone surrogate.

    Raises:
        BadRequest: they are something else.
    """
    try:
        value = _decoder.decode(data.decode())
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start}") from error
    except ValueError as error:  # also an integer of more digits than Python converts
        raise BadRequest(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise BadRequest("the body is JSON that is nested too deeply") from error
    if not isinstance(value, dict):
        raise BadRequest(f"the body is {shown(value)}, required is a JSON object")
    return value


_URL_SAFE = str.maketrans("-_", "+/")


def base64_bytes(value: Any, what: str) -> bytes:
    """The bytes that a string is the base64 of.

    Line breaks in it, the letters of base64url, missing padding and the head of a `data:` URI are allowed.

    Args:
        value: anything that was in JSON.
        what: what to call it in the error.

    Raises:
        BadRequest: it is no string, or not of base64.
    """
    if not isinstance(value, str):
        raise BadRequest(f"{what} is {shown(value)}, required is a string of base64")
    text = "".join(value.split())
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise BadRequest(f"{what} is a data: URI without base64: {shown(head)}")
    text = text.translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise BadRequest(f"{what} is not base64: {str(error).lower()}") from error


def shown(value: Any) -> str:
    """A value of JSON for an error, in a few characters: never what a list or object holds, which may be deep."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value[:50] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:60] + "..."
