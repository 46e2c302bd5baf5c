"""Additions to FastAPI's OpenAPI document: errors, request bodies, API keys."""

from typing import Any, TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel

from reco_ray.serving import contract
from reco_ray.serving.answers import COCO, LABEL_STUDIO
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import MEDIA_TYPE
from reco_ray.serving.uploads import Options

Json: TypeAlias = dict[str, Any]  # JSON Schema, or a part of the document
Responses: TypeAlias = dict[int | str, Json]  # by status code

_REASONS = {
    400: "malformed",
    401: "no key, or an unknown one",
    403: "not from here",
    404: "there is no such thing",
    406: "no answer in a type that is accepted",
    409: "not possible in this state",
    413: "too many bytes",
    415: "not a type that is read",
    422: "values that cannot be",
    429: "too many requests with this key; see Retry-After",
    500: "the server failed",
    503: "busy, building or shutting down; see Retry-After",
}
# Schemas that bodies of requests refer to, and that of errors.
_IN_BODIES = (
    contract.ProblemDetails,
    contract.NamedConcept,
    contract.ConceptImages,
    contract.PinnedImage,
    contract.ExampleImage,
)
_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def responses(
    model: type[BaseModel] | None, *errors: int, secured: bool = True, vocabulary: bool = False
) -> Responses:
    """The responses of a route: 200 with `model`, and the error codes."""
    codes = {*errors, 403, *((401, 429) if secured else ()), *((404,) if vocabulary else ())}
    found: Responses = {code: _error(code) for code in sorted(codes)}
    if model is not None:
        found = {200: {"model": model, "description": "done"}, **found}
    return found


def segment_responses() -> Responses:
    """The responses of /v1/segment, in all media types."""
    found = responses(contract.SegmentationResource, 400, 406, 409, 413, 415, 422, 503, vocabulary=True)
    found[200]["content"] = {
        "image/png": {"schema": {"type": "string", "format": "binary"}},
        "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        COCO: {"schema": {"type": "object", "description": "COCO's instances, for one image"}},
        LABEL_STUDIO: {"schema": {"type": "object", "description": "a prediction of Label Studio"}},
    }
    return found


def put_responses() -> Responses:
    """The responses of PUT: 202 while the vocabulary is built, 200 if it is ready."""
    found = responses(contract.VocabularyResource, 400, 409, 413, 415, 422, 503)
    found[202] = {"model": contract.VocabularyResource, "description": "is being built"}
    return found


def patch_responses() -> Responses:
    """The responses of PATCH: as of PUT, or there is no such vocabulary."""
    return {**put_responses(), 404: _error(404)}


def picture(*errors: int, secured: bool = True) -> Responses:
    """The responses of a route that returns a JPEG."""
    found = responses(None, *errors, secured=secured)
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "a picture", "content": {"image/jpeg": schema}}, **found}


def segment_request(limits: Limits) -> Json:
    """The body and parameters of /v1/segment."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "parameters": _query(limits),
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": _with_options(limits, {"image": binary["schema"]}, ["image"])
                },
                "application/x-www-form-urlencoded": {
                    "schema": _with_options(limits, {"image": _BASE64}, ["image"])
                },
                "application/json": {"schema": _with_options(limits, {"image": _BASE64}, ["image"])},
                "image/jpeg": binary,
                "image/png": binary,
                "application/octet-stream": binary,
                "binary/octet-stream": binary,
            },
        },
    }


def batch_request(limits: Limits) -> Json:
    """The body of /v1/segment:batch."""
    binary = {"type": "string", "format": "binary"}
    several = {"type": "array", "minItems": 1, "maxItems": limits.batch}
    named = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "image": _BASE64},
        "required": ["image"],
        "additionalProperties": False,
    }
    return {
        "parameters": _query(limits),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _with_options(
                        limits, {"images": {**several, "items": {"anyOf": [_BASE64, named]}}}, ["images"]
                    )
                },
                "multipart/form-data": {
                    "schema": _with_options(limits, {"images": {**several, "items": binary}}, ["images"])
                },
            },
        },
    }


def vocabulary_request(limits: Limits) -> Json:
    """The body of PUT."""
    schema = _schema(contract.VocabularyRequest)
    schema["properties"]["concepts"]["maxItems"] = limits.concepts
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def patch_request(limits: Limits) -> Json:
    """The body of PATCH."""
    schema = _schema(contract.VocabularyPatch)
    schema["properties"]["concepts"]["maxProperties"] = limits.concepts
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _schema(model: type[BaseModel]) -> Json:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def install(app: FastAPI, keys_required: bool) -> None:
    """Adds security schemes, and the schemas that no route declares, to FastAPI's document."""
    original = app.openapi

    def complete() -> Json:
        if app.openapi_schema is None:
            document = original()
            schemas = document["components"]["schemas"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for model in _IN_BODIES:
                schemas[model.__name__] = _schema(model)
            if keys_required:
                document["components"]["securitySchemes"] = {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "basic": {"type": "http", "scheme": "basic", "description": "the key is the password"},
                    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                }
                for operation in _operations(document):
                    if "401" in operation["responses"]:
                        operation["security"] = [{"bearer": []}, {"basic": []}, {"header": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]


_BASE64 = {
    "type": "string",
    "description": "the image in base64, of either alphabet, also in lines or without padding; or a data URL",
    "minLength": 4,
}


def _operations(document: Json) -> list[Json]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def _error(code: int) -> Json:
    answer: Json = {
        "description": _REASONS[code],
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
    if code in (429, 503):
        answer["headers"] = _RETRY
    return answer


def _option_schemas(limits: Limits) -> Json:
    properties = Options.model_json_schema()["properties"]
    # null is the same as omitting an option, and exists in JSON only.
    for schema in properties.values():
        chosen = next(each for each in schema.pop("anyOf") if each.get("type") != "null")
        schema.update(chosen)
        schema.pop("default", None)
        schema.pop("title", None)
    properties["max_side"]["maximum"] = limits.max_side
    return properties


def _query(limits: Limits) -> list[Json]:
    parameters = []
    for name, schema in _option_schemas(limits).items():
        description = schema.pop("description")
        if name == "concepts":
            schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
            description += "; repeated, or one value with commas or a JSON list; `concepts[]` is the same"
        parameters.append(
            {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
        )
    return parameters


def _with_options(limits: Limits, own: Json, required: list[str]) -> Json:
    properties = _option_schemas(limits)
    properties["concepts"] = {
        "description": "a list, or names separated by commas; a form may repeat the field, also as `concepts[]`",
        "anyOf": [{"type": "string", "minLength": 1}, properties["concepts"]],
    }
    return {
        "type": "object",
        "properties": {**own, **properties},
        "required": required,
        "additionalProperties": False,
    }
