"""Artifacts: directories that are complete once their manifest is written, as the last file."""

import json
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow.fs as pafs
from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from reco_ray import __version__
from reco_ray.errors import (
    MissingError,
    OtherModelError,
    RecoError,
    UnfinishedError,
    UnreadableError,
    file_error,
    reason,
)
from reco_ray.files.checksums import (
    MANIFEST,
    STARTED,
    ChecksumTable,
    delete_worker_checksums,
    write_checksums,
)
from reco_ray.files.differences import describe_differences
from reco_ray.files.filesystems import resolve
from reco_ray.files.retries import retried
from reco_ray.files.storage import absolute, exists, explained_errors, join, read_bytes, remove, write_bytes

SCHEMA_VERSION = 1
BEING_CLEARED: dict[str, object] = {}  # replaces `made_from` while an artifact's files are deleted
SUMMARY = "summary.json"  # statistics of the last run, see `distributed/timing.py`


class Content(BaseModel):
    """What a reader needs to open an artifact's files: of any kind; `contents.py` has a class for each."""

    kind: ClassVar[str] = ""

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in serialize(self).items() if value is not None}


C = TypeVar("C", bound=Content)


class Manifest(BaseModel, Generic[C]):
    """Kind, origin and counts of an artifact. Written last: a directory without it is unfinished."""

    kind: str
    schema_version: int = SCHEMA_VERSION
    made_by: str = f"reco-ray {__version__}"
    made_at: str = Field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    made_from: dict[str, Any] = Field(
        description="inputs, settings and model fingerprints that determine the content"
    )
    counts: dict[str, int] = {}
    seconds: float = 0.0
    content: SerializeAsAny[C]
    checksums: ChecksumTable | None = Field(default=None, description="None = made before they were kept")


def read_manifest(uri: str, content: type[C]) -> Manifest[C]:
    """Reads the manifest of an artifact.

    Args:
        uri: of the artifact.
        content: of the expected kind; `Content` for any.

    Raises:
        MissingError: the artifact does not exist.
        UnfinishedError: it is unfinished.
        UnreadableError: it is damaged, of another kind, or made by a version with other fields.
    """
    manifest, data = _read(uri, content.kind)
    try:
        return Manifest[content].model_validate_json(data)  # type: ignore[valid-type]
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise UnreadableError(
            f"{uri}: was made by another version ({manifest.made_by}; {field} is missing or has another form): "
            "delete it and make it again"
        ) from error


def _read(uri: str, kind: str) -> tuple[Manifest[Content], bytes]:
    """The manifest without its content, and the file."""
    try:
        data = read_bytes(join(uri, MANIFEST))
        manifest = Manifest[Content].model_validate_json(data)
    except FileNotFoundError as error:
        begun = exists(join(uri, STARTED))
        state = "is unfinished: run the command that makes it again" if begun else "is not there"
        missing = UnfinishedError if begun else MissingError
        what = f"this {kind} artifact" if kind else "this artifact"
        raise missing(f"{uri}: {what} {state} (no {MANIFEST})") from error
    except ValidationError as error:
        raise UnreadableError(
            f"{uri}/{MANIFEST}: not a manifest: delete the directory and make it again"
        ) from error
    except OSError as error:
        raise file_error(f"{uri}: cannot be read: {reason(error)}", error) from error
    if kind and manifest.kind != kind:
        raise UnreadableError(f"{uri}: holds {manifest.kind}, but {kind} is needed here")
    if manifest.schema_version > SCHEMA_VERSION:
        raise UnreadableError(
            f"{uri}: schema {manifest.schema_version} was made by a newer version ({manifest.made_by})"
        )
    return manifest, data


class ArtifactWriter(Generic[C]):
    """Creates an artifact: resumes unfinished work, commits at the end, never changes other content.

    `made_from` is everything that determines the content. If a finished artifact has the same one, there is nothing to
    do; if an unfinished one has it, work resumes; anything else is an error.
    """

    def __init__(self, uri: str, content: type[C], made_from: Mapping[str, Any]) -> None:
        self.uri, self.kind, self._content = absolute(uri), content.kind, content
        self.made_from = json.loads(json.dumps(made_from))
        self._started_at = time.monotonic()

    def finished(self) -> Manifest[C] | None:
        """The manifest if this artifact is finished; else claims the directory and returns None.

        Raises:
            RecoError: the directory has other content, or cannot be written.
        """
        if exists(join(self.uri, MANIFEST)):
            manifest = read_manifest(self.uri, self._content)
            self._require_same(manifest.made_from, "made")
            return manifest
        begun = self.stored()
        if begun is None:
            self.begin()
        else:
            self._require_same(begun, "begun")
        return None

    def stored(self) -> dict[str, Any] | None:
        """`made_from` of the artifact in the directory, finished or not; None if it is empty.

        Raises:
            RecoError: the directory has other content, or cannot be read.
        """
        if exists(join(self.uri, MANIFEST)):
            return _read(self.uri, self.kind)[0].made_from
        if exists(join(self.uri, STARTED)):
            try:
                started = json.loads(read_bytes(join(self.uri, STARTED)))
                kind, made_from = started["kind"], dict(started["made_from"])
            except (ValueError, KeyError, TypeError) as error:
                raise UnreadableError(f"{self.uri}/{STARTED}: damaged: delete the directory") from error
            if kind != self.kind:
                raise UnfinishedError(f"{self.uri}: holds unfinished {kind}, choose another --out")
            return made_from
        filesystem, path = resolve(self.uri)
        with explained_errors(self.uri, "cannot be written"):
            if retried(
                lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)), self.uri
            ):
                raise RecoError(f"{self.uri}: is not empty and no {self.kind} artifact: choose another --out")
        return None

    def begin(self, made_from: Mapping[str, Any] | None = None) -> None:
        """Claims the directory: marks its content as unfinished work from `made_from`.

        Args:
            made_from: None = this writer's own.
        """
        remove(join(self.uri, MANIFEST))
        started = {"kind": self.kind, "made_from": self.made_from if made_from is None else made_from}
        write_bytes(join(self.uri, STARTED), json.dumps(started, indent=2).encode())

    def draft(self, counts: Mapping[str, int], content: C) -> Manifest[C]:
        """The manifest of the artifact as it is now, without checksums; for a page inside it."""
        return Manifest(
            kind=self.kind,
            made_from=self.made_from,
            counts=dict(counts),
            seconds=round(time.monotonic() - self._started_at, 2),
            content=content,
        )

    def commit(self, counts: Mapping[str, int], content: C) -> Manifest[C]:
        """Writes the checksums, then the manifest, which completes the artifact."""
        checksums = write_checksums(self.uri)
        manifest = self.draft(counts, content).model_copy(update={"checksums": checksums})
        write_bytes(join(self.uri, MANIFEST), manifest.model_dump_json(indent=2).encode())
        delete_worker_checksums(self.uri)
        return manifest

    def _require_same(self, stored: dict[str, Any], verb: str) -> None:
        if stored == BEING_CLEARED:
            raise UnfinishedError(
                f"{self.uri}: a reco-ray run that replaces it was stopped half-way: run it again, or delete it"
            )
        if stored != self.made_from:
            raise OtherModelError(
                f"{self.uri}: {verb} with {describe_differences(stored, self.made_from)}: choose another --out, "
                "or delete it to make it anew"
            )
