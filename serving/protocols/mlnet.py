"""The protocol of ML.NET's image classification sample: one photo in the form field `imageFile`."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serving.http.responses import coded_error, errors_as, json_response
from serving.protocols import openapi
from serving.protocols.body import read_files
from serving.protocols.checks import PhotoRefused
from serving.service import BadRequest, Refusal, Service

FIELD = "imageFile"


class ImagePrediction(BaseModel):
    """What the model says of the photo: no label if it is none of the classes; the time is in milliseconds."""

    imageId: str
    predictedLabel: str | None
    probability: float
    predictionExecutionTime: int


_DOCUMENTED: openapi.Json = {
    "requestBody": {"required": True, "content": {"multipart/form-data": openapi.form(openapi.BINARY_SCHEMA, FIELD)}}
}


def router(service: Service) -> APIRouter:
    """The routes of this protocol."""
    routes = APIRouter(tags=["ML.NET sample"])

    # The sample's server does not tell upper from lower case; its clients write both of these.
    @routes.post("/api/ImageClassification/classifyimage", include_in_schema=False)
    @routes.post(
        "/api/ImageClassification/classifyImage",
        responses={
            200: {"model": ImagePrediction},
            **openapi.errors(openapi.CodedError, *openapi.POSTED),
        },
        openapi_extra=_DOCUMENTED,
    )
    @errors_as(coded_error)
    async def classify_image(request: Request) -> Response:
        """Classifies the photo in the form's field `imageFile`."""
        files = [file for file in await read_files(request, service.max_items) if file.field == FIELD]
        if len(files) != 1:
            raise BadRequest(f"the form has {len(files)} files in the field {FIELD}, required is one")
        if not files[0].data:
            raise PhotoRefused(Refusal("empty", f"the file in the field {FIELD} has no bytes"))
        _, (answer,) = await service.classify([files[0].data])
        if isinstance(answer, Refusal):
            raise PhotoRefused(answer)
        return json_response(
            {
                "imageId": files[0].name,
                "predictedLabel": answer.label,
                "probability": round(answer.score, 6),
                "predictionExecutionTime": round(answer.decode_ms + answer.queue_ms + answer.infer_ms),
            }
        )

    return routes
