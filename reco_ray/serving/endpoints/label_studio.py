"""An ML backend of Label Studio: masks as predictions for the tasks of a project.

The protocol is that of Label Studio's `ml/api_connector.py`: GET health, POST setup and predict. The address of the
backend ends in the name of a vocabulary or segmenter of this server, or else the project's labels are the concepts.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse, Response

from reco_ray import __version__
from reco_ray.files.storage import digest
from reco_ray.serving import openapi
from reco_ray.serving.answers import LABEL_STUDIO
from reco_ray.serving.bodies import Upload, read_json
from reco_ray.serving.label_config import BrushControl, parse_label_config
from reco_ray.serving.problems import Problem
from reco_ray.serving.task_images import TaskImages
from reco_ray.serving.uploads import Options, explain

if TYPE_CHECKING:
    from reco_ray.serving.ingress import Ingress

_AT_ONCE = 4
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="of a vocabulary or segmenter")]


class Task(BaseModel):
    """A task of a project. data: its fields, one of which names the image."""

    data: dict[str, Any]


class PredictRequest(BaseModel):
    """What Label Studio sends, as far as it is used. label_config: of the project, XML."""

    tasks: list[Task] = Field(min_length=1)
    label_config: str


class SetupRequest(BaseModel):
    """What Label Studio sends, as far as it is used: not the host name and token in it. The schema is XML."""

    configuration: str = Field(alias="schema")


class BackendHealth(BaseModel):
    """State of the backend."""

    status: str
    model_class: str


class BackendVersion(BaseModel):
    """Names what makes the predictions."""

    model_version: str


class Predictions(BackendVersion):
    """results: a prediction for each task, in the order of the request, or an empty list if its image cannot be had."""

    results: list[dict[str, Any] | list[dict[str, Any]]]


def build_router(ingress: "Ingress") -> APIRouter:
    """The routes, with and without the name of a vocabulary."""
    router = APIRouter()
    images = TaskImages(ingress.options.label_studio, ingress.options.fetch, ingress.limits.bytes)

    async def answer_health() -> Response:
        await ingress.info()
        return JSONResponse({"status": "UP", "model_class": "reco-ray"})

    async def answer_setup(request: Request, name: str | None) -> Response:
        body = _parsed(SetupRequest, await request.body())
        control = parse_label_config(body.configuration)
        if name is not None:
            found = await ingress.vocabulary(request.scope["state"]["owner"], name)
            _require_common(control, found.serving or found.concepts, name)
        return JSONResponse({"model_version": _version(ingress, name, control)})

    async def answer_predict(request: Request, name: str | None) -> Response:
        body = _parsed(PredictRequest, await request.body())
        if len(body.tasks) > ingress.limits.queue:
            raise Problem(422, f"{len(body.tasks)} tasks: at most {ingress.limits.queue} in one request")
        control, state = parse_label_config(body.label_config), request.scope["state"]
        if name is None and not control.labels:
            raise Problem(422, "label_config: its brush has no labels, which are the concepts to look for")
        options = Options(vocabulary=name) if name else Options(concepts=control.labels, background=True)
        ingress.charge(state["owner"], len(body.tasks) - 1)
        version, turn = _version(ingress, name, control), asyncio.Semaphore(_AT_ONCE)

        async def one(task: Task) -> dict[str, Any] | Problem:
            async with turn:
                try:
                    data = await asyncio.to_thread(images.read, task.data.get(control.field))
                    found = await ingress.segment(
                        state["owner"], state["request_id"], Upload(data), options, LABEL_STUDIO
                    )
                except Problem as problem:
                    return problem
                assert isinstance(found, bytes)
                return _for_project(json.loads(found), control, version)

        results = await asyncio.gather(*map(one, body.tasks))
        problems = [result for result in results if isinstance(result, Problem)]
        if len(problems) == len(results):
            raise problems[0]
        # Label Studio takes a list of predictions for a task, also one of none.
        shown = [[] if isinstance(result, Problem) else result for result in results]
        return JSONResponse({"results": shown, "model_version": version})

    health: dict[str, Any] = {"responses": openapi.responses(BackendHealth, 422, 503)}
    setup: dict[str, Any] = {
        "responses": openapi.responses(BackendVersion, 400, 404, 413, 422, 503),
        "openapi_extra": _body(SetupRequest),
    }
    predict: dict[str, Any] = {
        "responses": openapi.responses(Predictions, 400, 404, 409, 413, 415, 422, 503),
        "openapi_extra": _body(PredictRequest),
    }

    @router.get("/health", **health)
    async def health_of_labels() -> Response:
        """Whether the server answers."""
        return await answer_health()

    @router.get("/{name}/health", **health)
    async def health_of_vocabulary(name: Name) -> Response:
        """Whether the server answers."""
        return await answer_health()

    @router.post("/setup", **setup)
    async def setup_with_labels(request: Request) -> Response:
        """Checks the configuration of a project whose labels are the concepts."""
        return await answer_setup(request, None)

    @router.post("/{name}/setup", **setup)
    async def setup_with_vocabulary(request: Request, name: Name) -> Response:
        """Checks the configuration of a project whose labels are some concepts of a vocabulary."""
        return await answer_setup(request, name)

    @router.post("/predict", **predict)
    async def predict_labels(request: Request) -> Response:
        """Masks of the project's labels for some tasks."""
        return await answer_predict(request, None)

    @router.post("/{name}/predict", **predict)
    async def predict_vocabulary(request: Request, name: Name) -> Response:
        """Masks of a vocabulary for some tasks."""
        return await answer_predict(request, name)

    return router


def _parsed(model: type[Any], body: bytes) -> Any:
    try:
        return model.model_validate(read_json(body))
    except ValidationError as error:
        raise Problem(422, explain(error)) from None


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        schema["properties"]["tasks"]["items"] = definition if name == "Task" else {}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _version(ingress: "Ingress", name: str | None, control: BrushControl) -> str:
    what = name or f"labels-{digest(sorted(control.labels))[:8]}"
    return f"reco-ray {__version__} {ingress.options.preset} {what}"


def _require_common(control: BrushControl, concepts: tuple[str, ...], name: str) -> None:
    if not set(control.labels) & set(concepts):
        raise Problem(
            422, f"label_config: none of its labels is a concept of {name}, such as {', '.join(concepts[:3])}"
        )


def _for_project(prediction: dict[str, Any], control: BrushControl, version: str) -> dict[str, Any]:
    """The prediction with the names of the project's controls, and only with labels that the project has."""
    kept = [r for r in prediction["result"] if r["value"]["brushlabels"][0] in control.labels]
    for region in kept:
        region["from_name"], region["to_name"] = control.names
    return {**prediction, "result": kept, "model_version": version}
