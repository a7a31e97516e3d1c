"""Schemas of the Open Inference Protocol for /openapi.json: responses, the body of a request and its header."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from serving.protocols.openapi import BINARY_SCHEMA, PHOTO, Json

LENGTH = "Inference-Header-Content-Length"
OUTPUTS = ("probabilities", "label", "score")
TYPICALITY = "typicality"  # one more, of a server that tells photos of other things


class LiveResponse(BaseModel):
    """Whether the process answers."""

    live: bool


class ReadyResponse(BaseModel):
    """Whether a model is loaded and warm; its name, if that was asked for."""

    ready: bool
    name: str | None = None


class ServerMetadataResponse(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or output; -1 stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelParameters(BaseModel):
    """What there is to know beyond the protocol."""

    classes: list[str]
    image_size: int
    stored_versions: list[str]
    last_reload_error: str | None
    keeps_photos: bool
    unknown: float | None


class ModelMetadataResponse(BaseModel):
    """The model; a request has exactly one of the inputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: ModelParameters


class ResponseOutput(TensorMetadata):
    """An output: its elements, or their size in the bytes after the JSON."""

    data: list[float] | list[str] | None = None
    parameters: dict[str, int] | None = None


class InferenceResponse(BaseModel):
    """The answer to a request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


def request_body(outputs: Sequence[str]) -> Json:
    """The body of a request, as JSON or as JSON and bytes, which asks for some of these outputs."""
    count = {"type": "integer", "minimum": 1}
    text = {"type": "string", "format": "byte"}

    def tensor(name: str, datatype: str, dims: int, data: Json) -> Json:
        shape = {"type": "array", "items": count, "minItems": dims, "maxItems": dims}
        fields = {"name": {"enum": [name]}, "datatype": {"enum": [datatype]}, "shape": shape}
        values = {"type": "array", "items": data, "minItems": 1}
        return {"type": "object", "required": [*fields, "data"], "properties": {**fields, "data": values}}

    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    either = {"oneOf": [tensor("image", "BYTES", 1, text), tensor("pixels", "UINT8", 4, pixel)]}
    requested = {"type": "object", "required": ["name"], "properties": {"name": {"enum": [*outputs]}}}
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": either, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": requested, "uniqueItems": True},
        },
    }
    example = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [PHOTO]}]}
    content = {
        "application/json": {"schema": schema, "example": example},
        "application/octet-stream": {"schema": BINARY_SCHEMA},
    }
    return {"required": True, "content": content}


LENGTH_HEADER: Json = {
    "name": LENGTH,
    "in": "header",
    "description": "How many bytes of the body are JSON; the rest is the input's binary data. Without it all is JSON.",
    "schema": {"type": "integer", "minimum": 0},
}
