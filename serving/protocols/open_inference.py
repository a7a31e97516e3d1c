"""The Open Inference Protocol, version 2, with the extensions for binary tensors and classification."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import flowers
from serving.http.responses import errors_as, reply, text_error
from serving.protocols import open_inference_schemas as shapes
from serving.protocols import openapi
from serving.protocols.body import json_object, read, shown
from serving.protocols.checks import all_answered, find_model, ranked
from serving.protocols.open_inference_schemas import LENGTH, OUTPUTS
from serving.protocols.tensors import Output, Spec, Wanted, flag, parameters, read_input, read_wanted, split, write
from serving.service import Answer, BadRequest, Description, Service


def _inputs(model: Description) -> tuple[Spec, Spec]:
    size = model.image_size
    return Spec("image", "BYTES", (-1,)), Spec("pixels", "UINT8", (-1, size, size, 3))


def _outputs(model: Description) -> tuple[Spec, ...]:
    kinds = ("FP32", (-1, len(model.classes))), ("BYTES", (-1,)), ("FP32", (-1,))
    return tuple(Spec(name, *kind) for name, kind in zip(OUTPUTS, kinds, strict=True))


def router(service: Service) -> APIRouter:
    """The routes of this protocol; the service has a model already."""
    routes = APIRouter(tags=["Open Inference Protocol"])
    now = service.describe()
    named, versioned = openapi.in_path(now, "name"), openapi.in_path(now, "name", "version")
    unknown = openapi.errors(openapi.TextError, *openapi.LOOKUP)
    not_ready: dict[int | str, Any] = {503: {"model": shapes.Ready, "description": "No model is loaded yet."}}
    described: dict[int | str, Any] = {200: {"model": shapes.Model}, **unknown}
    binary_too = {"application/octet-stream": {"schema": openapi.BYTES}}
    inferred: dict[int | str, Any] = {
        200: {"model": shapes.Inference, "content": binary_too},
        **openapi.errors(openapi.TextError, *openapi.POSTED, 404),
    }

    @routes.get("/v2", responses={200: {"model": shapes.Server}, **openapi.errors(openapi.TextError, 401)})
    async def server(request: Request) -> Response:
        """What the server is."""
        extensions = ["binary_tensor_data", "classification"]
        return reply({"name": "flowers", "version": flowers.__version__, "extensions": extensions})

    @routes.get("/v2/health/live", responses={200: {"model": shapes.Live}})
    async def live(request: Request) -> Response:
        """Whether the process answers."""
        return reply({"live": True})

    @routes.get("/v2/health/ready", responses={200: {"model": shapes.Ready}, **not_ready})
    async def ready(request: Request) -> Response:
        """Whether a model is loaded and warm."""
        is_ready = service.ready
        return reply({"ready": is_ready}, 200 if is_ready else 503)

    @routes.get("/v2/models/{name}/ready", responses={200: {"model": shapes.Ready}, **unknown}, openapi_extra=named)
    @routes.get(
        "/v2/models/{name}/versions/{version}/ready",
        responses={200: {"model": shapes.Ready}, **unknown},
        openapi_extra=versioned,
    )
    @errors_as(text_error)
    async def model_ready(request: Request) -> Response:
        """Whether this model is loaded and warm."""
        model, _ = find_model(service, **request.path_params)
        is_ready = service.ready
        return reply({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)

    @routes.get("/v2/models/{name}", responses=described, openapi_extra=named)
    @routes.get("/v2/models/{name}/versions/{version}", responses=described, openapi_extra=versioned)
    @errors_as(text_error)
    async def metadata(request: Request) -> Response:
        """The inputs, outputs and classes of the model."""
        model, _ = find_model(service, **request.path_params)
        return reply(_metadata(model))

    def posted(at: openapi.Json) -> openapi.Json:
        return {"parameters": [*at["parameters"], shapes.LENGTH_HEADER], "requestBody": shapes.request_body()}

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
        text, binary = split(await read(request), request.headers.get(LENGTH))
        call = json_object(text)
        params = parameters(call, "the request")
        identifier = call.get("id")
        if identifier is not None and not isinstance(identifier, str):
            raise BadRequest(f"id is {shown(identifier)}, required is a string")
        wanted = read_wanted(
            call.get("outputs"), _outputs(model), OUTPUTS[0], flag(params, "binary_data_output", False)
        )
        name, data = read_input(call.get("inputs"), binary, _inputs(model), service.max_items)
        if isinstance(data, list):
            model, given = await service.classify(data, version)
            answers = all_answered(given, name)
        else:
            model, answers = await service.classify_pixels(data, version)
        head = {"model_name": model.name, "model_version": str(model.version)}
        body, length = write(
            head if identifier is None else {**head, "id": identifier},
            [_output(output, answers, model.classes) for output in wanted],
        )
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, headers={LENGTH: str(length)}, media_type="application/octet-stream")

    return routes


def _output(wanted: Wanted, answers: list[Answer], classes: tuple[str, ...]) -> Output:
    count = len(answers)
    if wanted.name == "label":
        return Output(wanted.name, [answer.label for answer in answers], (count,), wanted.binary)
    if wanted.name == "score":
        return Output(wanted.name, np.array([answer.score for answer in answers], np.float32), (count,), wanted.binary)
    if not wanted.best:
        values: npt.NDArray[np.float32] = np.stack([answer.probabilities for answer in answers])
        return Output(wanted.name, values, values.shape, wanted.binary)
    lines = [
        f"{answer.probabilities[place]:f}:{place}:{classes[place]}"
        for answer in answers
        for place in ranked(answer.probabilities, wanted.best)
    ]
    return Output(wanted.name, lines, (count, min(wanted.best, len(classes))), wanted.binary)


def _metadata(model: Description) -> dict[str, Any]:
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
        },
    }
