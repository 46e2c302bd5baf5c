"""The HTTP interface, route by route; what is computed is computed behind `Backend`."""

from pathlib import Path as Folder
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from reco_ray import __version__
from reco_ray.serving import openapi
from reco_ray.serving.answers import JSON, choose_type
from reco_ray.serving.bodies import Upload, is_json, read_json
from reco_ray.serving.openapi import Batch, Concept, Found, Info, Vocabularies, VocabularyResource
from reco_ray.serving.options import Limits
from reco_ray.serving.problems import Problem, problem_response
from reco_ray.serving.uploads import Options, read_request

_PAGE = Folder(__file__).parent / "page"
_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Name = Annotated[str, Path(pattern=_NAME, description="of a vocabulary")]
ConceptId = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="as a segmentation names it")]
ImageId = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="as a search names it")]
ExampleId = Annotated[str, Path(pattern="^[a-z0-9][a-z0-9-]{0,50}$")]


class Backend(Protocol):
    """What stands behind the routes; `owner` is who calls."""

    limits: Limits

    async def info(self) -> dict[str, Any]: ...

    async def ready(self) -> bool: ...

    def require_room(self, images: int) -> None: ...

    async def segment(
        self, owner: str, request_id: str, upload: Upload, options: Options, kind: str
    ) -> dict[str, Any] | bytes: ...

    async def segment_batch(
        self, owner: str, request_id: str, uploads: list[Upload], options: Options
    ) -> dict[str, Any]: ...

    async def library(self, method: str, *arguments: Any) -> Any: ...

    async def vocabularies(self, owner: str) -> list[dict[str, Any]]: ...

    async def vocabulary(self, owner: str, name: str) -> dict[str, Any]: ...

    async def put(self, owner: str, name: str, fields: dict[str, Any]) -> tuple[dict[str, Any], bool]: ...

    async def delete(self, owner: str, name: str) -> None: ...


def build_routes(backend: Backend, keys_required: bool) -> FastAPI:
    """The application without its gate."""
    app = FastAPI(
        title="reco-ray",
        version=__version__,
        description="Concept names and an image in, a semantic segmentation out.",
        docs_url=None,  # both pages would load scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_exception,
            RequestValidationError: _invalid,
            Exception: _unexpected,
        },
        redirect_slashes=False,
    )
    _add_segmentation(app, backend)
    _add_vocabularies(app, backend)
    _add_evidence(app, backend)
    _add_state(app, backend)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    openapi.install(app, keys_required)
    return app


def _add_segmentation(app: FastAPI, backend: Backend) -> None:
    @app.post(
        "/v1/segment",
        response_model=None,
        responses=openapi.segment_responses(),
        openapi_extra=openapi.segment_request(backend.limits),
        tags=["segmentation"],
    )
    async def segment(request: Request) -> Response:
        """Segments one image with a vocabulary, or with concepts named here."""
        kind = choose_type(request.headers.get("accept", ""))
        backend.require_room(1)
        uploads, options = await read_request(request, backend.limits, batch=False)
        state = request.scope["state"]
        result = await backend.segment(state["owner"], state["request_id"], uploads[0], options, kind)
        if isinstance(result, bytes):
            return Response(result, media_type=kind, headers={"Vary": "Accept"})
        return JSONResponse(result, headers={"Vary": "Accept"})

    @app.post(
        "/v1/segment:batch",
        response_model=None,
        responses=openapi.responses(Batch, 400, 406, 409, 413, 415, 422, 429, 503, vocabulary=True),
        openapi_extra=openapi.batch_request(backend.limits),
        tags=["segmentation"],
    )
    async def segment_batch(request: Request) -> Response:
        """Segments several images; one that cannot be used has an `error` in place of a segmentation."""
        if choose_type(request.headers.get("accept", "")) != JSON:
            raise Problem(406, "Accept: a batch is answered as application/json")
        backend.require_room(1)
        uploads, options = await read_request(request, backend.limits, batch=True)
        state = request.scope["state"]
        return JSONResponse(
            await backend.segment_batch(state["owner"], state["request_id"], uploads, options)
        )


def _add_vocabularies(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/vocabularies", responses=openapi.responses(Vocabularies, 503), tags=["vocabularies"])
    async def list_vocabularies(request: Request) -> Response:
        """The caller's vocabularies, and the segmenters that this server has."""
        found = await backend.vocabularies(request.scope["state"]["owner"])
        return JSONResponse({"vocabularies": found})

    @app.get(
        "/v1/vocabularies/{name}",
        responses=openapi.responses(VocabularyResource, 404, 422, 503),
        tags=["vocabularies"],
    )
    async def get_vocabulary(request: Request, name: Name) -> Response:
        """A vocabulary: its concepts, and how far it is built."""
        return JSONResponse(await backend.vocabulary(request.scope["state"]["owner"], name))

    @app.put(
        "/v1/vocabularies/{name}",
        status_code=202,
        response_model=None,
        responses=openapi.put_responses(),
        openapi_extra=openapi.vocabulary_request(backend.limits),
        tags=["vocabularies"],
    )
    async def put_vocabulary(request: Request, name: Name) -> Response:
        """Builds a vocabulary from the index, in the background; ask for it to see how far it is."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if not is_json(kind, body):
            raise Problem(415, "a vocabulary is application/json")
        fields = openapi.vocabulary_fields(read_json(body), backend.limits)
        resource, ready = await backend.put(request.scope["state"]["owner"], name, fields)
        return JSONResponse(resource, 200 if ready else 202, headers={"Location": f"/v1/vocabularies/{name}"})

    @app.delete(
        "/v1/vocabularies/{name}",
        status_code=204,
        responses=openapi.responses(None, 404, 409, 422, 503),
        tags=["vocabularies"],
    )
    async def delete_vocabulary(request: Request, name: Name) -> Response:
        """Deletes a vocabulary and what was built for it."""
        await backend.delete(request.scope["state"]["owner"], name)
        return Response(status_code=204)


def _add_evidence(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/search", responses=openapi.responses(Found, 409, 422, 503), tags=["evidence"])
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=200, description="words")],
        k: Annotated[int, Query(ge=1, le=100, description="images")] = 20,
    ) -> Response:
        """The images of the index that are nearest to words."""
        hits = await backend.library("search", q, k)
        for hit in hits:
            hit["thumbnail"] = f"/v1/images/{hit['image_id']}/thumbnail"
        return JSONResponse({"hits": hits})

    @app.get(
        "/v1/images/{image_id}/thumbnail",
        responses=openapi.picture(404, 409, 422, 503),
        tags=["evidence"],
    )
    async def thumbnail(image_id: ImageId) -> Response:
        """An image of the index, small."""
        return _lasting(await backend.library("thumbnail", image_id))

    @app.get(
        "/v1/concepts/{concept_id}", responses=openapi.responses(Concept, 404, 422, 503), tags=["evidence"]
    )
    async def concept(concept_id: ConceptId) -> Response:
        """What a concept's reference was made from."""
        found = await backend.library("concept", concept_id)
        for exemplar in found["exemplars"]:
            exemplar["thumbnail"] = f"/v1/images/{exemplar['image_id']}/thumbnail"
        return JSONResponse(found)

    @app.get(
        "/v1/concepts/{concept_id}/exemplars", responses=openapi.picture(404, 422, 503), tags=["evidence"]
    )
    async def exemplars(concept_id: ConceptId) -> Response:
        """The exemplars beside their support maps, seeds marked."""
        return _lasting(await backend.library("sheet", concept_id))


def _add_state(app: FastAPI, backend: Backend) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return FileResponse(_PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/healthz", responses=openapi.plain(), tags=["state"])
    async def healthz() -> Response:
        """Whether this process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", responses=openapi.plain(503), tags=["state"])
    async def readyz() -> Response:
        """Whether images can be segmented: models loaded, index open."""
        if not await backend.ready():
            raise Problem(503, "the server is starting", retry_after=2)
        return JSONResponse({"status": "ready"})

    @app.get("/v1/info", responses=openapi.responses(Info, 503, secured=False), tags=["state"])
    async def info() -> Response:
        """What this server has and allows."""
        return JSONResponse(await backend.info())

    @app.get(
        "/v1/examples/{example_id}", responses=openapi.picture(404, 422, 503, secured=False), tags=["state"]
    )
    async def example(example_id: ExampleId) -> Response:
        """A photograph to try."""
        return _lasting(await backend.library("example", example_id))


def _lasting(jpeg: bytes) -> Response:
    """A picture that never changes under its name."""
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _id(request: Request) -> str:
    return request.scope["state"]["request_id"]


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error, _id(request))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: "there is nothing at this path", 405: f"{request.method} is not possible here"}
    problem = Problem(
        error.status_code, detail.get(error.status_code, str(error.detail)), headers=dict(error.headers or {})
    )
    return problem_response(problem, _id(request))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return problem_response(Problem(422, f"{place}: {first['msg']}"), _id(request))


async def _unexpected(request: Request, error: Exception) -> Response:
    """The gate logs it: this only is the answer."""
    problem = Problem(500, "the server failed: its log says why, under this request's id")
    return problem_response(problem, _id(request))
