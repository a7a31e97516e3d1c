"""The Open Inference Protocol, version 2, with the extensions for binary tensors and classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import flowers
from serving.http.responses import errors_as, json_response, text_error
from serving.protocols import open_inference_schemas as schemas
from serving.protocols import openapi
from serving.protocols.body import json_object, read_body, shown
from serving.protocols.checks import all_answered, find_model, top_k
from serving.protocols.open_inference_schemas import LENGTH, OUTPUTS, TYPICALITY
from serving.protocols.parsing import parse
from serving.protocols.tensors import (
    OutputTensor,
    RequestedOutput,
    TensorSpec,
    bool_parameter,
    parameters,
    read_input,
    read_requested_outputs,
    split_body,
    write_response,
)
from serving.service import Answer, BadRequest, ModelDescription, Service


def _inputs(model: ModelDescription) -> tuple[TensorSpec, TensorSpec]:
    size = model.image_size
    return TensorSpec("image", "BYTES", (-1,)), TensorSpec("pixels", "UINT8", (-1, size, size, 3))


def _outputs(model: ModelDescription) -> tuple[TensorSpec, ...]:
    kinds = ("FP32", (-1, len(model.classes))), ("BYTES", (-1,)), ("FP32", (-1,))
    more = () if model.unknown is None else (TensorSpec(TYPICALITY, "FP32", (-1,)),)
    return (*(TensorSpec(name, *kind) for name, kind in zip(OUTPUTS, kinds, strict=True)), *more)


def router(service: Service) -> APIRouter:
    """The routes of this protocol; the service has a model already."""
    routes = APIRouter(tags=["Open Inference Protocol"])
    now = service.describe()
    named, versioned = openapi.in_path(now, "name"), openapi.in_path(now, "name", "version")
    unknown = openapi.errors(openapi.TextError, *openapi.LOOKUP)
    not_ready: dict[int | str, Any] = {503: {"model": schemas.ReadyResponse, "description": "No model is loaded yet."}}
    described: dict[int | str, Any] = {200: {"model": schemas.ModelMetadataResponse}, **unknown}
    binary_too = {"application/octet-stream": {"schema": openapi.BINARY_SCHEMA}}
    inferred: dict[int | str, Any] = {
        200: {"model": schemas.InferenceResponse, "content": binary_too},
        **openapi.errors(openapi.TextError, *openapi.POSTED, 404),
    }

    @routes.get(
        "/v2", responses={200: {"model": schemas.ServerMetadataResponse}, **openapi.errors(openapi.TextError, 401)}
    )
    async def server(request: Request) -> Response:
        """What the server is."""
        extensions = ["binary_tensor_data", "classification"]
        return json_response({"name": "flowers", "version": flowers.__version__, "extensions": extensions})

    @routes.get("/v2/health/live", responses={200: {"model": schemas.LiveResponse}})
    async def live(request: Request) -> Response:
        """Whether the process answers."""
        return json_response({"live": True})

    @routes.get("/v2/health/ready", responses={200: {"model": schemas.ReadyResponse}, **not_ready})
    async def ready(request: Request) -> Response:
        """Whether a model is loaded and warm."""
        is_ready = service.ready
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    @routes.get(
        "/v2/models/{name}/ready", responses={200: {"model": schemas.ReadyResponse}, **unknown}, openapi_extra=named
    )
    @routes.get(
        "/v2/models/{name}/versions/{version}/ready",
        responses={200: {"model": schemas.ReadyResponse}, **unknown},
        openapi_extra=versioned,
    )
    @errors_as(text_error)
    async def model_ready(request: Request) -> Response:
        """Whether this model is loaded and warm."""
        model, _ = find_model(service, **request.path_params)
        is_ready = service.ready
        return json_response({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)

    @routes.get("/v2/models/{name}", responses=described, openapi_extra=named)
    @routes.get("/v2/models/{name}/versions/{version}", responses=described, openapi_extra=versioned)
    @errors_as(text_error)
    async def metadata(request: Request) -> Response:
        """The inputs, outputs and classes of the model."""
        model, _ = find_model(service, **request.path_params)
        return json_response(_metadata(model))

    def posted(at: openapi.Json) -> openapi.Json:
        names = [spec.name for spec in _outputs(now)]
        return {"parameters": [*at["parameters"], schemas.LENGTH_HEADER], "requestBody": schemas.request_body(names)}

    @routes.post("/v2/models/{name}/infer", responses=inferred, openapi_extra=posted(named))
    @routes.post(
        "/v2/models/{name}/versions/{version}/infer",
        responses=inferred,
        openapi_extra=posted(versioned),
    )
    @errors_as(text_error)
    async def infer(request: Request) -> Response:
        """Classifies photos or pixels; a photo that cannot be decoded fails the request."""
        model, version = find_model(service, **request.path_params)
        text, binary = split_body(await read_body(request), request.headers.get(LENGTH))
        identifier, requested, name, data = await parse(
            read_request, text, binary, _inputs(model), _outputs(model), service.max_items
        )
        if isinstance(data, list):
            model, given = await service.classify(data, version)
            answers = all_answered(given, name)
        else:
            model, answers = await service.classify_pixels(data, version)
        head = {"model_name": model.name, "model_version": str(model.version)}
        body, length = write_response(
            head if identifier is None else {**head, "id": identifier},
            [_output(output, answers, model.classes) for output in requested],
        )
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, headers={LENGTH: str(length)}, media_type="application/octet-stream")

    return routes


def read_request(
    text: bytes, binary: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limit: int
) -> tuple[str | None, list[RequestedOutput], str, list[bytes] | npt.NDArray[np.uint8]]:
    """The identifier of a request, the outputs that it asks for, and name and elements of its input (`read_input`).

    Raises:
        BadRequest: it is malformed.
        TooLarge: it has more than `limit` photos.
    """
    call = json_object(text)
    params = parameters(call, "the request")
    identifier = call.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise BadRequest(f"id is {shown(identifier)}, required is a string")
    requested = read_requested_outputs(
        call.get("outputs"), outputs, OUTPUTS[0], bool_parameter(params, "binary_data_output", False)
    )
    return identifier, requested, *read_input(call.get("inputs"), binary, inputs, limit)


def _output(requested: RequestedOutput, answers: list[Answer], classes: tuple[str, ...]) -> OutputTensor:
    count = len(answers)
    if requested.name == "label":
        labels = [answer.label or "" for answer in answers]  # a tensor of strings knows no null
        return OutputTensor(requested.name, labels, (count,), requested.binary)
    if requested.name in ("score", TYPICALITY):
        numbers = np.array([getattr(answer, requested.name) for answer in answers], np.float32)
        return OutputTensor(requested.name, numbers, (count,), requested.binary)
    if not requested.class_count:
        values: npt.NDArray[np.float32] = np.stack([answer.probabilities for answer in answers])
        return OutputTensor(requested.name, values, values.shape, requested.binary)
    lines = [
        f"{answer.probabilities[index]:f}:{index}:{classes[index]}"
        for answer in answers
        for index in top_k(answer.probabilities, requested.class_count)
    ]
    return OutputTensor(requested.name, lines, (count, min(requested.class_count, len(classes))), requested.binary)


def _metadata(model: ModelDescription) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": "keras",
        "inputs": [spec.metadata() for spec in _inputs(model)],
        "outputs": [spec.metadata() for spec in _outputs(model)],
        "parameters": {
            "classes": model.classes,
            "image_size": model.image_size,
            "stored_versions": [str(version) for version in model.versions],
            "last_reload_error": model.last_reload_error,
            "keeps_photos": model.keeps_photos,
            "unknown": model.unknown,
        },
    }
