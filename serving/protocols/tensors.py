"""Tensors of the Open Inference Protocol: as JSON, or as bytes that follow the JSON.

In bytes, numbers are little-endian and in row-major order; an element of type BYTES is its length in 4 bytes, then
itself. In JSON, elements of type BYTES are base64 in requests, as photos are no text, and text in responses.
Everything here is pure; whatever is malformed is a BadRequest, too many items are a TooLarge.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.http.responses import encode
from serving.protocols.body import base64_bytes, shown
from serving.protocols.checks import check_count
from serving.service import BadRequest


@dataclass(frozen=True)
class TensorSpec:
    """What an input or output looks like.

    Attributes:
        name: of the tensor.
        datatype: "BYTES", "UINT8" or "FP32".
        shape: its sides; the first, the number of photos, is -1 for any.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        """How the protocol writes it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: of the output.
        binary: whether it is to follow the JSON as bytes.
        class_count: 0 for the tensor itself, else for how many of its highest values the class is to be named.
    """

    name: str
    binary: bool
    class_count: int = 0


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to send: float32 of any shape, or strings, in row-major order, and the shape they have."""

    name: str
    data: npt.NDArray[np.float32] | list[str]
    shape: tuple[int, ...]
    binary: bool


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON and the bytes after it.

    Args:
        body: of a request.
        header_length: the header Inference-Header-Content-Length; without it all is JSON.
    """
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 19):
        raise BadRequest(f"Inference-Header-Content-Length is {shown(header_length)}, required is a number of bytes")
    if (length := int(header_length)) > len(body):
        raise BadRequest(f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes")
    return body[:length], body[length:]


def parameters(entry: dict[str, Any], what: str) -> dict[str, Any]:
    """The parameters of a request, input or output; none at all is the same as an empty object."""
    value = entry.get("parameters")
    if value is not None and not isinstance(value, dict):
        raise BadRequest(f"parameters of {what} are {shown(value)}, required is an object")
    return value or {}


def bool_parameter(params: dict[str, Any], name: str, default: bool) -> bool:
    """A parameter that is true or false."""
    value = params.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {shown(value)}, required is true or false")
    return value


def read_input(
    inputs: Any, binary: bytes, accepted: Sequence[TensorSpec], limit: int
) -> tuple[str, list[bytes] | npt.NDArray[np.uint8]]:
    """The one input of a request.

    Args:
        inputs: what the request has under "inputs".
        binary: all bytes after its JSON.
        accepted: the inputs of which a request has exactly one: of type BYTES with one side, or of type UINT8.
        limit: how many photos a request may have.

    Returns:
        Its name, and its elements: bytes in a list, or uint8 of its shape, which may be read-only.
    """
    names = " or ".join(spec.name for spec in accepted)
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest(f"inputs must be a list of exactly one tensor: {names}")
    entry = inputs[0]
    spec = next((spec for spec in accepted if spec.name == entry.get("name")), None)
    if spec is None:
        raise BadRequest(f"there is no input {shown(entry.get('name'))}, required is {names}")
    if entry.get("datatype") != spec.datatype:
        raise BadRequest(f"datatype of {spec.name} is {shown(entry.get('datatype'))}, required is {spec.datatype}")
    shape = _shape(entry.get("shape"), spec, limit)
    size, data = parameters(entry, spec.name).get("binary_data_size"), entry.get("data")
    if (size is None) == (data is None):
        raise BadRequest(f"{spec.name} must have either data or the parameter binary_data_size")
    if data is not None and len(binary):
        raise BadRequest(f"{len(binary)} bytes follow the JSON, which no input declares with binary_data_size")
    if data is not None:
        return spec.name, _from_json(data, spec, shape)
    if type(size) is not int or size != len(binary):
        raise BadRequest(f"binary_data_size of {spec.name} is {shown(size)}, but {len(binary)} bytes follow the JSON")
    if spec.datatype == "BYTES":
        return spec.name, unpack_bytes(binary, shape[0])
    if size != math.prod(shape):
        raise BadRequest(f"{spec.name} has {size} bytes, its shape {list(shape)} needs {math.prod(shape)}")
    return spec.name, np.frombuffer(binary, np.uint8).reshape(shape)


def _shape(value: Any, spec: TensorSpec, limit: int) -> tuple[int, ...]:
    sides = [side for side in value if type(side) is int] if isinstance(value, list) else []
    if sides != value or len(sides) != len(spec.shape) or sides[1:] != list(spec.shape[1:]) or sides[0] < 1:
        required = ", ".join(["n", *map(str, spec.shape[1:])])
        raise BadRequest(f"shape of {spec.name} must be [{required}], n being 1 or more")
    check_count(sides[0], limit)
    return tuple(sides)


def _from_json(data: Any, spec: TensorSpec, shape: tuple[int, ...]) -> list[bytes] | npt.NDArray[np.uint8]:
    """Elements that are in JSON, flat or nested as the shape says."""
    if not isinstance(data, list):
        raise BadRequest(f"data of {spec.name} is {shown(data)}, required is a list")
    for inner in shape[1:]:
        if set(map(type, data)) != {list}:
            break
        if set(map(len, data)) != {inner}:
            raise BadRequest(f"data of {spec.name} is not nested as its shape {list(shape)} says")
        data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise BadRequest(
            f"data of {spec.name} has {len(data)} elements, its shape {list(shape)} needs {math.prod(shape)}"
        )
    if spec.datatype == "BYTES":
        return [base64_bytes(value, f"{spec.name} {index}") for index, value in enumerate(data)]
    if set(map(type, data)) != {int} or not (min(data) >= 0 and max(data) <= 255):
        raise BadRequest(f"data of {spec.name} must be whole numbers from 0 to 255")
    return np.array(data, np.uint8).reshape(shape)


def unpack_bytes(binary: bytes, count: int) -> list[bytes]:
    """The `count` elements of type BYTES that the bytes are."""
    elements, at = [], 0
    for index in range(count):
        if at + 4 > len(binary):
            raise BadRequest(f"the bytes end before element {index} of {count}")
        (length,) = struct.unpack_from("<I", binary, at)
        if at + 4 + length > len(binary):
            raise BadRequest(f"element {index} has {length} bytes, of which {len(binary) - at - 4} are there")
        elements.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    if at < len(binary):
        raise BadRequest(f"{len(binary) - at} bytes follow the last of {count} elements")
    return elements


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """The bytes of elements of type BYTES."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def read_requested_outputs(
    outputs: Any, offered: Sequence[TensorSpec], ranked: str, binary: bool
) -> list[RequestedOutput]:
    """The outputs that a request asks for, all that are offered if it names none.

    Args:
        outputs: what the request has under "outputs".
        offered: all outputs.
        ranked: the one that the parameter "classification" is for.
        binary: whether outputs that do not say follow the JSON as bytes.
    """
    if outputs is not None and not (isinstance(outputs, list) and all(isinstance(entry, dict) for entry in outputs)):
        raise BadRequest("outputs must be a list of objects")
    if not outputs:
        return [RequestedOutput(spec.name, binary) for spec in offered]
    requested: dict[str, RequestedOutput] = {}
    for entry in outputs:
        name = entry.get("name")
        if not isinstance(name, str) or name not in [spec.name for spec in offered] or name in requested:
            raise BadRequest(
                f"output {shown(name)} is unknown or there twice, required is each at most once: "
                + ", ".join(spec.name for spec in offered)
            )
        params = parameters(entry, name)
        class_count = params.get("classification", 0)
        if type(class_count) is not int or class_count < 0 or (class_count and name != ranked):
            raise BadRequest(
                f"classification of {name} is {shown(class_count)}; it is a number of classes, for {ranked} only"
            )
        requested[name] = RequestedOutput(name, bool_parameter(params, "binary_data", binary), class_count)
    return list(requested.values())


def write_response(head: dict[str, Any], outputs: Sequence[OutputTensor]) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if bytes follow that."""
    described, parts = [], []
    for output in outputs:
        datatype = "BYTES" if isinstance(output.data, list) else "FP32"
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": list(output.shape)}
        if output.binary:
            part = _bytes_of(output.data)
            parts.append(part)
            described.append({**entry, "parameters": {"binary_data_size": len(part)}})
        else:
            data = output.data if isinstance(output.data, list) else output.data.ravel().tolist()
            described.append({**entry, "data": data})
    text = encode({**head, "outputs": described})
    return b"".join([text, *parts]), len(text) if parts else None


def _bytes_of(data: npt.NDArray[np.float32] | list[str]) -> bytes:
    if isinstance(data, list):
        return pack_bytes([_text_bytes(text) for text in data])
    return data.astype("<f4").tobytes()


def _text_bytes(text: str) -> bytes:
    """UTF-8; names of folders that were no UTF-8 get their own bytes back."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")
