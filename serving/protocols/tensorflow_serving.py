"""The REST API of TensorFlow Serving: status, metadata and predict, in rows (`instances`) or columns (`inputs`)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serving.http.responses import errors_as, json_response, text_error
from serving.protocols import openapi
from serving.protocols.body import base64_bytes, json_object, read_body, shown
from serving.protocols.checks import all_answered, check_count, find_model
from serving.protocols.parsing import parse
from serving.service import Answer, BadRequest, ModelDescription, Service

SIGNATURE, INPUT = "serving_default", "image_bytes"


class StatusProto(BaseModel):
    """What is wrong with a version: nothing."""

    error_code: str
    error_message: str


class ModelVersionStatus(BaseModel):
    """The state of one version."""

    version: str
    state: str
    status: StatusProto


class GetModelStatusResponse(BaseModel):
    """The versions that are loaded."""

    model_version_status: list[ModelVersionStatus]


class ModelSpec(BaseModel):
    """Which model the metadata is of."""

    name: str
    signature_name: str
    version: str


class GetModelMetadataResponse(BaseModel):
    """The inputs and outputs of the model."""

    model_spec: ModelSpec
    metadata: dict[str, Any]


class RowPrediction(BaseModel):
    """One instance: scores and labels of all classes, then the best; the label is empty if it is none of them.

    `typicality` is there of a server that tells photos of other things.
    """

    scores: list[float]
    classes: list[str]
    label: str
    score: float
    typicality: float | None = None


class RowResponse(BaseModel):
    """The answer to `instances`."""

    predictions: list[RowPrediction]


class ColumnPredictions(BaseModel):
    """The outputs by name, as in rows."""

    scores: list[list[float]]
    classes: list[list[str]]
    label: list[str]
    score: list[float]
    typicality: list[float] | None = None


class ColumnResponse(BaseModel):
    """The answer to `inputs`."""

    outputs: ColumnPredictions


def _documented_body() -> openapi.Json:
    photo = {
        "type": "object",
        "required": ["b64"],
        "properties": {"b64": {"type": "string", "format": "byte"}},
        "additionalProperties": False,
    }
    named = {"type": "object", "required": [INPUT], "properties": {INPUT: photo}, "additionalProperties": False}
    photos = {"type": "array", "items": photo, "minItems": 1}
    column = {**named, "properties": {INPUT: photos}}
    signature = {"type": "string", "enum": ["", SIGNATURE]}
    either = {"instances": {**photos, "items": {"oneOf": [photo, named]}}, "inputs": {"oneOf": [photos, column]}}
    forms = [
        {"type": "object", "required": [key], "properties": {key: value, "signature_name": signature}}
        for key, value in either.items()
    ]
    example = {"instances": [{"b64": openapi.PHOTO}]}
    return {"required": True, "content": {"application/json": {"schema": {"oneOf": forms}, "example": example}}}


def router(service: Service) -> APIRouter:
    """The routes of this protocol; the service has a model already."""
    routes = APIRouter(tags=["TensorFlow Serving"])
    now = service.describe()
    named, versioned = openapi.in_path(now, "name"), openapi.in_path(now, "name", "version")
    body = {"requestBody": _documented_body()}
    unknown = openapi.errors(openapi.TextError, *openapi.LOOKUP)
    refused = openapi.errors(openapi.TextError, *openapi.POSTED, 404)
    described: dict[int | str, Any] = {200: {"model": GetModelMetadataResponse}, **unknown}
    predicted: dict[int | str, Any] = {200: {"model": RowResponse | ColumnResponse}, **refused}

    # First, as a name may hold a colon: whoever asks what may be done here is told of POST.
    @routes.post("/v1/models/{name}:predict", responses=predicted, openapi_extra={**named, **body})
    @routes.post(
        "/v1/models/{name}/versions/{version}:predict", responses=predicted, openapi_extra={**versioned, **body}
    )
    @errors_as(text_error)
    async def predict(request: Request) -> Response:
        """Classifies photos; one that cannot be decoded fails the request."""
        _, version = find_model(service, **request.path_params)
        form, photos = await parse(read_photos, await read_body(request), service.max_items)
        model, answers = await service.classify(photos, version)
        rows = [_row(answer, model) for answer in all_answered(answers, form.removesuffix("s"))]
        if form == "instances":
            return json_response({"predictions": rows})
        return json_response({"outputs": {name: [row[name] for row in rows] for name in rows[0]}})

    @routes.get("/v1/models/{name}", responses={200: {"model": GetModelStatusResponse}, **unknown}, openapi_extra=named)
    @routes.get(
        "/v1/models/{name}/versions/{version}",
        responses={200: {"model": GetModelStatusResponse}, **unknown},
        openapi_extra=versioned,
    )
    @errors_as(text_error)
    async def status(request: Request) -> Response:
        """The version that is loaded."""
        model, _ = find_model(service, **request.path_params)
        return json_response({"model_version_status": [_status(model, service.ready)]})

    @routes.get("/v1/models/{name}/metadata", responses=described, openapi_extra=named)
    @routes.get("/v1/models/{name}/versions/{version}/metadata", responses=described, openapi_extra=versioned)
    @errors_as(text_error)
    async def metadata(request: Request) -> Response:
        """The inputs and outputs of the model."""
        model, _ = find_model(service, **request.path_params)
        return json_response(_metadata(model))

    return routes


def read_photos(body: bytes, limit: int) -> tuple[str, list[bytes]]:
    """The form of a request, "instances" or "inputs", and its photos, 1 to `limit`.

    Raises:
        BadRequest: it is malformed.
        TooLarge: it has more photos.
    """
    call = json_object(body)
    signature = call.get("signature_name", "")
    if signature not in ("", SIGNATURE):
        raise BadRequest(f"signature_name is {shown(signature)}, required is {SIGNATURE!r} or none")
    forms = [key for key in ("instances", "inputs") if key in call]
    if len(forms) != 1:
        raise BadRequest(f"the request has {' and '.join(forms) or 'no photos'}, required is instances or inputs")
    form, values = forms[0], call[forms[0]]
    if form == "inputs" and isinstance(values, dict) and set(values) == {INPUT}:
        values = values[INPUT]
    if not isinstance(values, list) or not values:
        raise BadRequest(f"{form} must be a list of one or more photos")
    check_count(len(values), limit)
    what = form.removesuffix("s")
    return form, [
        base64_bytes(_encoded(value, f"{what} {index}"), f"b64 of {what} {index}") for index, value in enumerate(values)
    ]


def _encoded(value: Any, what: str) -> Any:
    """What is under "b64" in the object that stands for a photo."""
    if isinstance(value, dict) and set(value) == {INPUT}:
        value = value[INPUT]
    if not isinstance(value, dict) or set(value) != {"b64"}:
        raise BadRequest(f'{what} must be {{"b64": "..."}} with the base64 of a photo')
    return value["b64"]


def _row(answer: Answer, model: ModelDescription) -> dict[str, Any]:
    row = {
        "scores": answer.probabilities.tolist(),
        "classes": model.classes,
        "label": answer.label or "",  # a tensor of strings knows no null
        "score": answer.score,
    }
    return row if answer.typicality is None else {**row, "typicality": answer.typicality}


def _status(model: ModelDescription, ready: bool) -> dict[str, Any]:
    state = "AVAILABLE" if ready else "LOADING"
    return {"version": str(model.version), "state": state, "status": {"error_code": "OK", "error_message": ""}}


def _metadata(model: ModelDescription) -> dict[str, Any]:
    classes = len(model.classes)
    outputs = {
        "scores": ("DT_FLOAT", [-1, classes]),
        "classes": ("DT_STRING", [-1, classes]),
        "label": ("DT_STRING", [-1]),
        "score": ("DT_FLOAT", [-1]),
    }
    if model.unknown is not None:
        outputs["typicality"] = ("DT_FLOAT", [-1])
    signature = {
        "inputs": {INPUT: _tensor(INPUT, "DT_STRING", [-1])},
        "outputs": {name: _tensor(name, *kind) for name, kind in outputs.items()},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version)},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor(name: str, dtype: str, shape: list[int]) -> dict[str, Any]:
    dimensions = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": f"{name}:0"}
