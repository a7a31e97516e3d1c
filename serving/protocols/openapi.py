"""Parts of /openapi.json that the protocols share: parameters of URLs, binary bodies, errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serving.service import ModelDescription

Json = dict[str, Any]

# Statuses of errors: of routes that take no body, and of those that do.
LOOKUP = (401, 404, 503)
POSTED = (400, 401, 408, 413, 415, 503)
_STATUSES = {
    400: "The request is malformed, or a photo in it cannot be decoded.",
    401: "A token is required.",
    404: "There is no such model or version.",
    408: "The request did not arrive in time.",
    413: "The request has more bytes or more photos than one may have.",
    415: "The body is of a type that is not read here, or no photo.",
    503: "The server has too much to do, or no model yet; Retry-After says when to try again.",
}

PHOTO = "R0lGODdhAQABAIAAAAAAAAAAACwAAAAAAQABAAAIBAABBAQAOw=="  # base64 of a GIF of one black pixel
BINARY_SCHEMA: Json = {"type": "string", "format": "binary"}


class ErrorDetail(BaseModel):
    """Why something was refused: one word for programs and one line for a person."""

    code: str
    detail: str


class CodedError(BaseModel):
    """An error with a code."""

    error: ErrorDetail


class TextError(BaseModel):
    """An error as one line of text."""

    error: str


def errors(model: type[BaseModel], *statuses: int) -> dict[int | str, Json]:
    """The `responses` of a route for these statuses, all of one model."""
    return {status: {"model": model, "description": _STATUSES[status]} for status in statuses}


def in_path(model: ModelDescription, *names: str) -> Json:
    """The parameters of a URL: "name", of the model, and perhaps "version"."""
    known: dict[str, Json] = {
        "name": {"description": "Name of the model.", "schema": {"type": "string", "enum": [model.name]}},
        "version": {
            "description": "Number of the version. The one that is loaded answers; others are not found.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
            "example": str(model.version),
        },
    }
    return {"parameters": [{"name": name, "in": "path", "required": True, **known[name]} for name in names]}


def form(field: Json, name: str) -> Json:
    """The body of a multipart form with one required field of this schema."""
    return {"schema": {"type": "object", "required": [name], "properties": {name: field}}}
