"""The project's own protocol: `POST /predict` with the bytes of a photo, or a form with one or more."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from flowers.data.images import sniff
from serving.http.responses import coded_error, errors_as, json_response
from serving.protocols import openapi
from serving.protocols.body import UnsupportedMedia, media_type, read_body, read_files, shown
from serving.protocols.checks import PhotoRefused, top_k
from serving.service import Answer, BadRequest, ModelDescription, Refusal, Service

MAX_TOP = 1000  # labels that `top` may ask for
# What programs say of bytes that they know nothing of; curl --data-binary says the third.
_ANY_BYTES = ("", "application/octet-stream", "application/x-www-form-urlencoded", "binary/octet-stream", "*/*")
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


class LabelScore(BaseModel):
    """A class and its probability."""

    label: str
    score: float


class Timing(BaseModel):
    """Where the time went, in milliseconds."""

    queue_ms: float
    decode_ms: float
    infer_ms: float


class PredictResponse(BaseModel):
    """What the model says of one photo: `heatmap` only if it was asked for, `typicality` only of a server that tells
    photos of other things, `reason` only of these: then there is no label.
    """

    label: str | None
    score: float
    typicality: float | None = None
    reason: str | None = None
    top: list[LabelScore]
    model_version: str
    timing: Timing
    heatmap: list[list[float]] | None = None


class FilePrediction(PredictResponse):
    """The same for a file of a form."""

    filename: str


class FileError(BaseModel):
    """A file of a form that is no usable photo."""

    filename: str
    error: openapi.ErrorDetail


class FilesResponse(BaseModel):
    """One item for each file of a form, in order."""

    items: list[FilePrediction | FileError]


class _Query(NamedTuple):
    top: int = 5
    heatmap: bool = False


_DOCUMENTED: openapi.Json = {
    "parameters": [
        {
            "name": "top",
            "in": "query",
            "description": "How many labels to return, the most probable first; all if there are fewer.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOP, "default": 5},
        },
        {
            "name": "heatmap",
            "in": "query",
            "description": "Whether to return how much each part of the photo's middle square speaks for the label.",
            "schema": {"type": "string", "enum": list(_SWITCH), "default": "false"},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": openapi.BINARY_SCHEMA},
            "image/*": {"schema": openapi.BINARY_SCHEMA},
            "multipart/form-data": openapi.form(
                {"type": "array", "items": openapi.BINARY_SCHEMA, "minItems": 1}, "file"
            ),
        },
    },
}


def router(service: Service) -> APIRouter:
    """The routes of this protocol."""
    routes = APIRouter(tags=["native"])

    @routes.post(
        "/predict",
        responses={
            200: {
                "model": PredictResponse | FilesResponse,
                "description": "The prediction; for a form, one item for each file.",
            },
            **openapi.errors(openapi.CodedError, *openapi.POSTED),
        },
        openapi_extra=_DOCUMENTED,
    )
    @errors_as(coded_error)
    async def predict(request: Request) -> Response:
        """Classifies the photo that the body is, or each file of a form."""
        query = _query(request) if request.scope["query_string"] else _Query()
        kind = media_type(request)
        if kind == "multipart/form-data":
            files = await read_files(request, service.max_items)
            if not files:
                raise BadRequest("the form holds no file: send one or more photos, in fields of any name")
            model, answers = await service.classify([file.data for file in files])
            items = [_item(answer, model, query) for answer in answers]
            return json_response(
                {"items": [{"filename": file.name, **item} for file, item in zip(files, items, strict=True)]}
            )
        photo = await read_body(request)
        if photo and not (kind.startswith("image/") or kind in _ANY_BYTES or sniff(photo)):
            raise UnsupportedMedia(
                f"Content-Type is {shown(kind)}, required is image/*, application/octet-stream or multipart/form-data"
            )
        if not photo:
            raise PhotoRefused(Refusal("empty", "the body is empty, required are the bytes of a photo"))
        model, (answer,) = await service.classify([photo])
        if isinstance(answer, Refusal):
            raise PhotoRefused(answer)
        return json_response(_item(answer, model, query))

    # curl -T sends a file so, and puts its name behind an address that ends with a slash.
    for path in ("/predict", "/predict/{name}"):
        routes.add_api_route(path, predict, methods=["PUT"], include_in_schema=False, response_class=Response)
    return routes


def _query(request: Request) -> _Query:
    query = request.query_params
    top, heatmap = query.get("top", "5"), query.get("heatmap", "false")
    if not re.fullmatch("[0-9]{1,4}", top) or not 1 <= int(top) <= MAX_TOP:
        raise BadRequest(f"top is {shown(top)}, required is a whole number from 1 to {MAX_TOP}")
    if heatmap not in _SWITCH:
        raise BadRequest(f"heatmap is {shown(heatmap)}, required is one of {', '.join(_SWITCH)}")
    return _Query(int(top), _SWITCH[heatmap])


def _item(answer: Answer | Refusal, model: ModelDescription, query: _Query) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"error": {"code": answer.code, "detail": answer.detail}}
    scores = answer.probabilities.tolist()
    item: dict[str, Any] = {"label": answer.label, "score": round(answer.score, 6)}
    if answer.typicality is not None:
        item["typicality"] = round(answer.typicality, 6)
    if answer.reason is not None:
        item["reason"] = answer.reason
    item |= {
        "top": [
            {"label": model.classes[index], "score": round(scores[index], 6)}
            for index in top_k(answer.probabilities, query.top)
        ],
        "model_version": str(model.version),
        "timing": {
            "queue_ms": round(answer.queue_ms, 3),
            "decode_ms": round(answer.decode_ms, 3),
            "infer_ms": round(answer.infer_ms, 3),
        },
    }
    if query.heatmap:
        item["heatmap"] = np.round(answer.heat.astype(np.float64), 4).tolist()
    return item
