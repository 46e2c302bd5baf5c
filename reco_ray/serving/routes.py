"""The routes of the HTTP interface.

A new endpoint takes three files: its answer in `contract.py`, its route here, and its computation as a method of a
deployment, such as the vocabulary service, which the route calls by `ingress.ask`.

Another package adds endpoints by an entry point in the group `reco_ray.endpoints`, a module with
`build_router(ingress) -> fastapi.APIRouter`. Its routes are below /v1/extensions/NAME/ and pass all middlewares: they
need a key where keys are required, and limits of rates, bodies and time hold for them.
"""

import asyncio
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from reco_ray import __version__
from reco_ray.errors import SettingError
from reco_ray.registry import ENDPOINTS
from reco_ray.serving import contract, openapi
from reco_ray.serving.answers import JSON, MEDIA_TYPES, choose_type
from reco_ray.serving.bodies import is_json, read_json
from reco_ray.serving.problems import UNEXPECTED, Problem, problem_response
from reco_ray.serving.uploads import parse_patch, parse_vocabulary, read_request

if TYPE_CHECKING:
    from reco_ray.serving.ingress import Ingress

_PAGE = Folder(__file__).parent / "page"
_SHARED: list[str | tuple[str, str]] = [("reco_ray", "presentation/static")]  # what the report has as well
_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Name = Annotated[str, Path(pattern=_NAME, description="of a vocabulary")]
ConceptId = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="as a segmentation names it")]
ImageId = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="as a search names it")]
Rank = Annotated[int, Path(ge=0, le=100_000, description="of an exemplar, from 0")]
ExampleId = Annotated[str, Path(pattern="^[a-z0-9][a-z0-9-]{0,50}$")]


def build_routes(ingress: "Ingress", keys_required: bool) -> FastAPI:
    """The FastAPI application, without the middlewares."""
    app = FastAPI(
        title="reco-ray",
        version=__version__,
        description="Concept names and an image in, a semantic segmentation out.",
        docs_url=None,  # both pages load scripts from another host
        redoc_url=None,
        exception_handlers=dict.fromkeys(
            (Problem, HTTPException, RequestValidationError, Exception), _error_response
        ),
        redirect_slashes=False,
    )
    _add_segmentation(app, ingress)
    _add_vocabularies(app, ingress)
    _add_evidence(app, ingress)
    _add_state(app, ingress)
    for name in ENDPOINTS.names:
        router = ENDPOINTS.get(name).build_router(ingress)
        app.include_router(
            router, prefix=f"/v1/extensions/{name}", responses=openapi.responses(None), tags=[name]
        )
    app.mount("/page", StaticFiles(directory=_PAGE, packages=_SHARED), name="page")
    openapi.install(app, keys_required)
    return app


def require_endpoints() -> None:
    """Imports the endpoints of other packages, so that a server that could not start fails at once.

    Raises:
        RecoError: one cannot be imported, or has no `build_router`.
    """
    for name in ENDPOINTS.names:
        if not callable(getattr(ENDPOINTS.get(name), "build_router", None)):
            raise SettingError(f"HTTP endpoint {name!r}: its module has no function build_router(ingress)")


def _add_segmentation(app: FastAPI, ingress: "Ingress") -> None:
    @app.post(
        "/v1/segment",
        response_model=None,
        responses=openapi.segment_responses(),
        openapi_extra=openapi.segment_request(ingress.limits),
        tags=["segmentation"],
    )
    async def segment(request: Request) -> Response:
        """Segments one image with a vocabulary, or with concepts named here."""
        kind = choose_type(request.headers.get("accept", ""))
        ingress.require_queue_space(1)
        uploads, options = await read_request(request, ingress.limits, batch=False)
        kind = MEDIA_TYPES[options.format] if options.format else kind
        state = request.scope["state"]
        result = await ingress.segment(state["owner"], state["request_id"], uploads[0], options, kind)
        if isinstance(result, bytes):
            return Response(result, media_type=kind, headers={"Vary": "Accept"})
        return _answer(result, headers={"Vary": "Accept"})

    @app.post(
        "/v1/segment:batch",
        response_model=None,
        responses=openapi.responses(contract.Batch, 400, 406, 409, 413, 415, 422, 429, 503, vocabulary=True),
        openapi_extra=openapi.batch_request(ingress.limits),
        tags=["segmentation"],
    )
    async def segment_batch(request: Request) -> Response:
        """Segments several images; one that cannot be used has an `error` in place of a segmentation."""
        if choose_type(request.headers.get("accept", "")) != JSON:
            raise Problem(406, "Accept: a batch is answered as application/json")
        ingress.require_queue_space(1)
        uploads, options = await read_request(request, ingress.limits, batch=True)
        if options.format not in (None, "json"):
            raise Problem(422, "format: a batch is answered as json")
        state = request.scope["state"]
        return _answer(await ingress.segment_batch(state["owner"], state["request_id"], uploads, options))


def _add_vocabularies(app: FastAPI, ingress: "Ingress") -> None:
    @app.get(
        "/v1/vocabularies", responses=openapi.responses(contract.Vocabularies, 503), tags=["vocabularies"]
    )
    async def list_vocabularies(request: Request) -> Response:
        """The caller's vocabularies, and the segmenters that this server has."""
        return _answer(await ingress.vocabularies(request.scope["state"]["owner"]))

    @app.get(
        "/v1/vocabularies/{name}",
        responses=openapi.responses(contract.VocabularyResource, 404, 422, 503),
        tags=["vocabularies"],
    )
    async def get_vocabulary(request: Request, name: Name) -> Response:
        """A vocabulary: its concepts, and how far it is built."""
        return _answer(await ingress.vocabulary(request.scope["state"]["owner"], name))

    @app.put(
        "/v1/vocabularies/{name}",
        status_code=202,
        response_model=None,
        responses=openapi.put_responses(),
        openapi_extra=openapi.vocabulary_request(ingress.limits),
        tags=["vocabularies"],
    )
    async def put_vocabulary(request: Request, name: Name) -> Response:
        """Builds a vocabulary from the index, in the background; ask for it to see how far it is."""
        fields = await _read_json_body(request)
        vocabulary, images = await asyncio.to_thread(parse_vocabulary, fields, ingress.limits)
        resource, ready = await ingress.put(request.scope["state"]["owner"], name, vocabulary, images)
        return _answer(resource, 200 if ready else 202, headers={"Location": f"/v1/vocabularies/{name}"})

    @app.patch(
        "/v1/vocabularies/{name}",
        status_code=202,
        response_model=None,
        responses=openapi.patch_responses(),
        openapi_extra=openapi.patch_request(ingress.limits),
        tags=["vocabularies"],
    )
    async def patch_vocabulary(request: Request, name: Name) -> Response:
        """Chooses images for concepts of a vocabulary, and builds it again; what it does not name stays."""
        fields = await _read_json_body(request)
        chosen, images = await asyncio.to_thread(parse_patch, fields, ingress.limits)
        resource, ready = await ingress.patch(request.scope["state"]["owner"], name, chosen, images)
        return _answer(resource, 200 if ready else 202, headers={"Location": f"/v1/vocabularies/{name}"})

    @app.delete(
        "/v1/vocabularies/{name}",
        status_code=204,
        responses=openapi.responses(None, 404, 409, 422, 503),
        tags=["vocabularies"],
    )
    async def delete_vocabulary(request: Request, name: Name) -> Response:
        """Deletes a vocabulary and what was built for it."""
        await ingress.delete(request.scope["state"]["owner"], name)
        return Response(status_code=204)


async def _read_json_body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if not is_json(kind, body):
        raise Problem(415, "a vocabulary is application/json")
    return read_json(body)


def _add_evidence(app: FastAPI, ingress: "Ingress") -> None:
    @app.get("/v1/search", responses=openapi.responses(contract.SearchHits, 409, 422, 503), tags=["evidence"])
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=200, description="words")],
        k: Annotated[int, Query(ge=1, le=100, description="images")] = 20,
    ) -> Response:
        """The images of the index that are nearest to words."""
        hits = await ingress.ask(ingress.vocabulary_service.search, q, k)
        return _answer(contract.SearchHits(hits=hits))

    @app.get(
        "/v1/images/{image_id}/thumbnail",
        responses=openapi.picture(404, 409, 422, 503),
        tags=["evidence"],
    )
    async def thumbnail(image_id: ImageId) -> Response:
        """An image of the index, small."""
        return _immutable_jpeg(await ingress.ask(ingress.vocabulary_service.thumbnail, image_id))

    @app.get(
        "/v1/concepts/{concept_id}",
        responses=openapi.responses(contract.ConceptResource, 404, 422, 503),
        tags=["evidence"],
    )
    async def concept(concept_id: ConceptId) -> Response:
        """What a concept's reference was made from."""
        return _answer(await ingress.ask(ingress.vocabulary_service.concept, concept_id))

    @app.get(
        "/v1/concepts/{concept_id}/exemplars", responses=openapi.picture(404, 422, 503), tags=["evidence"]
    )
    async def exemplars(concept_id: ConceptId) -> Response:
        """The exemplars beside their support maps, seeds marked."""
        return _immutable_jpeg(await ingress.ask(ingress.vocabulary_service.sheet, concept_id))

    @app.get(
        "/v1/concepts/{concept_id}/exemplars/{rank}",
        responses=openapi.picture(404, 422, 503),
        tags=["evidence"],
    )
    async def exemplar(concept_id: ConceptId, rank: Rank) -> Response:
        """The photograph of one exemplar."""
        return _immutable_jpeg(await ingress.ask(ingress.vocabulary_service.exemplar, concept_id, rank))


def _add_state(app: FastAPI, ingress: "Ingress") -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return FileResponse(_PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/healthz", responses=openapi.responses(contract.ServerState, secured=False), tags=["state"])
    async def healthz() -> Response:
        """Whether this process answers."""
        return _answer(contract.ServerState(status="ok"))

    @app.get("/readyz", responses=openapi.responses(contract.ServerState, 503, secured=False), tags=["state"])
    async def readyz() -> Response:
        """Whether images can be segmented: models loaded, index open."""
        if not await ingress.ready():
            raise Problem(503, "the server is starting", retry_after=2)
        return _answer(contract.ServerState(status="ready"))

    @app.get("/v1/info", responses=openapi.responses(contract.Info, 503, secured=False), tags=["state"])
    async def info() -> Response:
        """What this server has and allows."""
        return _answer(await ingress.info())

    @app.get(
        "/v1/examples/{example_id}", responses=openapi.picture(404, 422, 503, secured=False), tags=["state"]
    )
    async def example(example_id: ExampleId) -> Response:
        """A photograph to try."""
        return _immutable_jpeg(await ingress.ask(ingress.vocabulary_service.example, example_id))


def _answer(answer: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Not model_dump_json, which formats some floats differently (1e-5 instead of 1e-05).
    return JSONResponse(answer.model_dump(), status, headers)


def _immutable_jpeg(jpeg: bytes) -> Response:
    """A JPEG that may be cached: its content at this path never changes."""
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


async def _error_response(request: Request, error: Exception) -> Response:
    """Turns any error into a problem. Unexpected ones are raised again, and logged by `middleware.answer_problems`."""
    if isinstance(error, Problem):
        problem = error
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        problem = Problem(422, f"{place}: {first['msg']}")
    elif isinstance(error, HTTPException):
        known = {404: "there is nothing at this path", 405: f"{request.method} is not possible here"}
        detail = known.get(error.status_code, str(error.detail))
        problem = Problem(error.status_code, detail, headers=dict(error.headers or {}))
    else:
        problem = Problem(500, UNEXPECTED)
    return problem_response(problem, request.scope["state"]["request_id"])
