"""A Python client of `reco-ray serve`: images and concept names in, label maps out.

    from reco_ray.client import Client

    with Client("http://127.0.0.1:8000") as client:
        answer = client.segment("room.jpg", concepts=["cat", "sofa"])
        answer.labels  # int32 (H, W)

It imports neither torch nor Ray.
"""

import base64
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
import requests
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import BaseModel, RootModel, ValidationError

from reco_ray.corpus.arrays import picture_of
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.errors import RecoError, SettingError, UnreadableError, file_error, reason
from reco_ray.files.proxies import Proxy, proxy_for
from reco_ray.serving import contract

UNLABELLED = -1
OPACITY = 0.55
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever Retry-After is

ImageLike = Any  # a path, the bytes of a file, an open file, a PIL image, an array or a tensor


class ServiceError(RecoError):
    """The service refused a request or could not be reached; the message can be shown to users.

    status: HTTP status, None without a response.
    title, request_id: of the problem body, if there was one.
    """

    def __init__(
        self, detail: str, *, status: int | None = None, title: str = "", request_id: str | None = None
    ):
        super().__init__(detail)
        self.status = status
        self.title = title
        self.request_id = request_id


class ServiceBusy(ServiceError):
    """The service was still busy (429 or 503) when `patience` was used up."""


class FoundConcept(contract.Region):
    """A concept in an image. area: pixels. share: fraction of the image, in [0, 1]. score: mean over the area.

    Where the answer has `probabilities`, the score says how sure the model is.
    """

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)."""
        return coco_mask.decode({"size": self.rle.size, "counts": self.rle.counts.encode()}).astype(bool)


@dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image: `concepts` present, by decreasing area; `legend` {label: name} of all labels.

    probabilities: whether scores are probabilities of the labels, as those of calibrated models and of segmenters are.
    """

    width: int
    height: int
    concepts: tuple[FoundConcept, ...]
    legend: dict[int, str]
    model: str
    vocabulary: str | None
    request_id: str
    seconds: float
    image: bytes
    """The photograph that was sent."""
    probabilities: bool = False

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 (H, W) label ids, UNLABELLED where there is no concept."""
        labels = np.full((self.height, self.width), UNLABELLED, np.int32)
        for concept in self.concepts:
            labels[concept.mask] = concept.label
        return labels

    def overlay(self, opacity: float = OPACITY) -> Image.Image:
        """The image in RGB, of size (width, height), with the concepts' colours drawn over it.

        Args:
            opacity: of the colours, in [0, 1].

        Raises:
            UnreadableError: the image is HEIC, and the extra `heic` is not installed.
        """
        try:
            picture, _, _ = decode_image(self.image, max_pixels=Image.MAX_IMAGE_PIXELS or 178_956_970)
        except DecodeError as error:
            raise UnreadableError(f"the photograph that was sent cannot be shown: {error}") from error
        photo = picture.resize((self.width, self.height))
        mixed = np.asarray(photo).astype(np.float32)
        for concept in self.concepts:
            rgb = np.array([int(concept.colour[place : place + 2], 16) for place in (1, 3, 5)], np.float32)
            mixed[concept.mask] = (1 - opacity) * mixed[concept.mask] + opacity * rgb
        return Image.fromarray(mixed.round().astype(np.uint8))


class VocabularyStatus(contract.VocabularyResource):
    """A vocabulary of the service. kind: "zero-shot" or "segmenter". status: "building", "ready" or "failed".

    serving: concepts of the version that is served, which may be the previous one; None if there is none.
    mine: whether it belongs to this client's key, which may replace and delete it.
    """

    @property
    def done(self) -> int:
        """Number of concepts built, context concepts and statistics of the corpus included."""
        return self.progress.done

    @property
    def total(self) -> int:
        """Number of concepts to build, context concepts and statistics of the corpus included."""
        return self.progress.total


class _VocabularyList(contract.Vocabularies):
    vocabularies: tuple[VocabularyStatus, ...]


class _JsonObject(RootModel[dict[str, Any]]):
    """A JSON object."""


_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True)
class Hit:
    """An image found in the corpus. thumbnail: path on the service."""

    image_id: str
    score: float
    name: str
    thumbnail: str


class Client:
    """A client of one service. Can be kept open; not thread-safe.

    Args:
        url: of the service, such as "http://127.0.0.1:8000".
        key: an API key, if the service requires one.
        timeout: of one response, seconds.
        patience: total time per call to wait for a busy service (429 and 503 with Retry-After), seconds; then
            ServiceBusy is raised. 0 raises at once.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 120.0, patience: float = 300.0):
        if not url.startswith(("http://", "https://")):
            raise SettingError(f"{url!r} is no address of a service: it begins with http:// or https://")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.patience = patience
        self._session = requests.Session()
        self._session.headers["Accept"] = "application/json"
        if key is not None:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def info(self) -> dict[str, Any]:
        """Version, models, refinements and limits of the service."""
        return self._ask(_JsonObject, "GET", "/v1/info").root

    def segment(
        self,
        image: ImageLike,
        *,
        concepts: Iterable[str] | None = None,
        vocabulary: str | None = None,
        refine: str | None = None,
        background: bool | None = None,
        threshold: float | None = None,
        max_side: int | None = None,
    ) -> Segmentation:
        """Segments one image with `concepts`, or with a `vocabulary` of the service.

        Args:
            image: a path, the bytes of a file, an open file; or a PIL image of any mode, an array or a tensor, as for
                `reco_ray.corpus.arrays.picture_of`.
            concepts: names to segment, instead of `vocabulary`.
            vocabulary: name of a vocabulary or segmenter of the service.
            refine: "none", "pamr", "superpixels", "crf" or another refinement of the service; None = its setting.
            background: whether pixels that match no concept are labelled as background.
            threshold: score in [0, 1] below which a pixel is background.
            max_side: longer side of the answer, pixels.

        Raises:
            ServiceError: the service refused, or cannot be reached.
            RecoError: the image cannot be read.
        """
        options = _options(
            concepts, vocabulary, refine=refine, background=background, threshold=threshold, max_side=max_side
        )
        data = _image_bytes(image)
        body = {"image": base64.b64encode(data).decode(), **options}
        return _segmentation(self._ask(contract.SegmentationResource, "POST", "/v1/segment", json=body), data)

    def segment_batch(
        self,
        images: Iterable[ImageLike],
        *,
        concepts: Iterable[str] | None = None,
        vocabulary: str | None = None,
        refine: str | None = None,
        background: bool | None = None,
        threshold: float | None = None,
        max_side: int | None = None,
    ) -> list[Segmentation | ServiceError]:
        """Segments several images in one request, in order; for one that fails the list holds a ServiceError.

        Arguments and errors as for `segment`.
        """
        options = _options(
            concepts, vocabulary, refine=refine, background=background, threshold=threshold, max_side=max_side
        )
        data = [_image_bytes(image) for image in images]
        encoded = [{"id": str(n), "image": base64.b64encode(d).decode()} for n, d in enumerate(data)]
        body = {"images": encoded, **options}
        by_id = {
            each.id: each
            for each in self._ask(contract.Batch, "POST", "/v1/segment:batch", json=body).results
        }
        return [_outcome(by_id[str(n)], image) for n, image in enumerate(data)]

    def vocabularies(self) -> list[VocabularyStatus]:
        """Lists the vocabularies and segmenters that this key may use."""
        return list(self._ask(_VocabularyList, "GET", "/v1/vocabularies").vocabularies)

    def vocabulary(self, name: str) -> VocabularyStatus:
        """Describes one vocabulary.

        Raises:
            ServiceError: there is no vocabulary of that name (status 404).
        """
        return self._ask(VocabularyStatus, "GET", _vocabulary_path(name))

    def build(
        self,
        name: str,
        concepts: Iterable[str | dict[str, Any]],
        *,
        background: bool = False,
        context: Iterable[str] | None = None,
        wait: bool = True,
        progress: Callable[[VocabularyStatus], None] | None = None,
        interval: float = 0.5,
    ) -> VocabularyStatus:
        """Builds a vocabulary; does nothing if an identical one exists.

        Args:
            concepts: names, or {"name": "sofa", "synonyms": ["couch", "settee"]}, also with images, as for `choose`.
            background: whether pixels that match no concept are labelled as background.
            context: context concepts; None = the default ones.
            wait: until it is ready; else return when the build has started.
            progress: called with each polled state while waiting.
            interval: between polls, seconds.

        Raises:
            ServiceError: the service refused, or the build failed.
        """
        named = [_with_base64(each) if isinstance(each, dict) else each for each in _names(concepts)]
        body: dict[str, Any] = {"concepts": named, "background": background}
        if context is not None:
            body["context"] = _names(context)
        state = self._ask(VocabularyStatus, "PUT", _vocabulary_path(name), json=body)
        return self._built(state, wait, progress, interval)

    def choose(
        self,
        name: str,
        concepts: Mapping[str, Mapping[str, Any]],
        *,
        wait: bool = True,
        progress: Callable[[VocabularyStatus], None] | None = None,
        interval: float = 0.5,
    ) -> VocabularyStatus:
        """Chooses images for concepts of a vocabulary, and builds it again.

        Args:
            concepts: by name, the images in place of all that were chosen before: `rejected`, image ids; `pinned`,
                such as {"image_id": ..., "boxes": [[left, top, right, bottom]]}; `examples`, {"image": ...} with
                `boxes` and `points` as well. An image is a path, bytes, a picture or an array, as for `segment`.
            wait, progress, interval: as for `build`.

        Raises:
            ServiceError: the service refused, or the build failed.
        """
        body = {"concepts": {concept: _with_base64(chosen) for concept, chosen in concepts.items()}}
        state = self._ask(VocabularyStatus, "PATCH", _vocabulary_path(name), json=body)
        return self._built(state, wait, progress, interval)

    def _built(
        self,
        state: VocabularyStatus,
        wait: bool,
        progress: Callable[[VocabularyStatus], None] | None,
        interval: float,
    ) -> VocabularyStatus:
        name = state.name
        while wait and state.status == "building":
            if progress is not None:
                progress(state)
            time.sleep(interval)
            state = self.vocabulary(name)
        if progress is not None and wait:
            progress(state)
        if state.status == "failed":
            raise ServiceError(f"vocabulary {name}: {state.error or 'the build failed'}")
        return state

    def delete(self, name: str) -> None:
        """Deletes a vocabulary.

        Raises:
            ServiceError: there is none of that name (404), or it belongs to another key (403).
        """
        self._request("DELETE", _vocabulary_path(name))

    def search(self, words: str, *, k: int = 20) -> list[Hit]:
        """The `k` images of the corpus nearest to `words`."""
        found = self._ask(contract.SearchHits, "GET", "/v1/search", params={"q": words, "k": str(k)})
        return [Hit(hit.image_id, hit.score, hit.uri_name, hit.thumbnail) for hit in found.hits]

    def exemplars(self, concept_id: str) -> Image.Image:
        """The contact sheet of a concept: exemplars with support maps and marked seeds."""
        path = f"/v1/concepts/{quote(concept_id, safe='')}/exemplars"
        return Image.open(io.BytesIO(self._request("GET", path, headers={"Accept": "image/jpeg"}).content))

    def _ask(self, kind: type[_Answer], method: str, path: str, **options: Any) -> _Answer:
        response = self._request(method, path, **options)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors()[0]
            what = "not JSON" if first["type"] == "json_invalid" else "another than this client knows"
            place = ".".join(map(str, first["loc"]))
            raise ServiceError(
                f"{self.url}{path}: the answer is {what}{place and f' ({place})'}: is this a reco-ray service?"
            ) from error

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                response = self._session.request(method, self.url + path, timeout=self.timeout, **options)
            except requests.exceptions.ProxyError as error:
                raise ServiceError(_proxy_failed(self.url, proxy_for(self.url), error)) from error
            except requests.RequestException as error:
                raise ServiceError(f"{self.url} cannot be reached: {_root_cause(error)}") from error
            if response.ok:
                return response
            pause = _retry_after(response)
            if pause is None or time.monotonic() + pause > deadline:
                problem = _problem_body(response)
                if not problem and (proxy := proxy_for(self.url)):
                    said = f"HTTP status {response.status_code}"
                    problem = {"detail": f"{said}, of {self.url} or of the proxy {proxy} on the way there"}
                raise _error(response.status_code, problem)
            time.sleep(pause)


def _vocabulary_path(name: str) -> str:
    if not name:
        raise SettingError("the name of a vocabulary is empty")
    return f"/v1/vocabularies/{quote(name, safe='')}"


def _options(
    concepts: Iterable[str] | None, vocabulary: str | None, **others: str | float | None
) -> dict[str, Any]:
    if (concepts is None) == (vocabulary is None):
        raise SettingError("give either concepts or a vocabulary")
    options = {"concepts": None if concepts is None else _names(concepts), "vocabulary": vocabulary, **others}
    return {name: value for name, value in options.items() if value is not None}


def _names(concepts: Iterable[Any]) -> list[Any]:
    if isinstance(concepts, str):
        raise SettingError('concepts is one string: give a list, as ["cat", "dog"]')
    return list(concepts)


def _with_base64(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The images that were chosen for a concept, with those that are sent in base64."""
    if "examples" not in chosen:
        return dict(chosen)
    examples = [
        {**example, "image": base64.b64encode(_image_bytes(example["image"])).decode()}
        if "image" in example
        else example
        for example in chosen["examples"]
    ]
    return {**chosen, "examples": examples}


def _image_bytes(image: Any) -> bytes:
    """The encoded image: files unchanged, images in memory as PNG."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, str | PathLike) and not hasattr(image, "read"):
        buffer = io.BytesIO()
        picture_of(image).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    try:
        return Path(image).read_bytes() if isinstance(image, str | PathLike) else image.read()
    except OSError as error:
        raise file_error(f"{image}: the image cannot be read: {reason(error)}", error) from error


def _segmentation(answer: contract.SegmentationResource, image: bytes) -> Segmentation:
    return Segmentation(
        width=answer.width,
        height=answer.height,
        concepts=tuple(FoundConcept(**region.model_dump()) for region in answer.concepts),
        legend={label.label: label.name for label in answer.legend},
        model=answer.model,
        vocabulary=answer.vocabulary,
        request_id=answer.request_id,
        seconds=answer.seconds,
        image=image,
        probabilities=answer.probabilities,
    )


def _outcome(
    result: contract.BatchSegmentation | contract.BatchFailure, image: bytes
) -> Segmentation | ServiceError:
    if isinstance(result, contract.BatchFailure):
        return _error(result.error.status, result.error.model_dump())
    return _segmentation(result, image)


def _problem_body(response: requests.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _error(status: int | None, problem: dict[str, Any]) -> ServiceError:
    kind = ServiceBusy if status in (429, 503) else ServiceError
    detail = problem.get("detail") or problem.get("title") or f"the service answered {status}"
    return kind(detail, status=status, title=problem.get("title", ""), request_id=problem.get("request_id"))


def _retry_after(response: requests.Response) -> float | None:
    """Seconds to wait before a retry; None if the request should not be retried."""
    if response.status_code not in (429, 503):
        return None
    try:
        return min(max(float(response.headers.get("Retry-After", "")), 0.1), _LONGEST_WAIT)
    except ValueError:
        return None


def _root_cause(error: BaseException) -> str:
    """The operating system's error in the chain of exceptions, else the text of the outermost one."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            return reason(cause)
    return "it did not answer in time" if isinstance(error, requests.Timeout) else reason(error)


def _proxy_failed(url: str, proxy: Proxy | None, error: BaseException) -> str:
    """The message for a failure of the proxy, in which case the service was not reached."""
    cause = _root_cause(error)
    if said := re.search(r"Tunnel connection failed: ([^'\")]+)", str(error)):
        cause = f"it answers {said[1]}"
    host = urlsplit(url).hostname
    return (
        f"{url} cannot be reached: the proxy {proxy} fails: {cause}: unset the variable, or no_proxy={host}"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
