"""The kinds of errors: a program tells them apart by their class, whatever process they come from."""

import errno
from pathlib import Path

import pytest
from vectors import clustered, write_embeddings

import reco_ray
from reco_ray.config import load_settings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.index.corpus_index import CorpusIndex
from reco_ray.errors import (
    MissingError,
    MissingPackageError,
    NoRoomError,
    OtherModelError,
    RecoError,
    SettingError,
    UnfinishedError,
    UnreadableError,
    file_error,
    out_of_memory,
    pack,
    unpack,
)
from reco_ray.files import storage
from reco_ray.files.artifacts import STARTED, read_manifest
from reco_ray.files.retries import StoreUnavailable


@pytest.fixture
def index(tmp_path: Path) -> str:
    write_embeddings(tmp_path / "embeddings", clustered(20))
    return reco_ray.index(embeddings=f"{tmp_path}/embeddings", out=f"{tmp_path}/index").uri


def kind_of(index: str) -> type[Exception]:
    with pytest.raises(RecoError) as caught:
        CorpusIndex(index, "another#model")
    return caught.type


def test_a_missing_index_is_told_from_one_of_another_model(index: str, tmp_path: Path) -> None:
    assert kind_of(index) is OtherModelError
    assert kind_of(f"{tmp_path}/nothing") is MissingError
    (Path(index) / "manifest.json").rename(Path(index) / STARTED)
    assert kind_of(index) is UnfinishedError
    (Path(index) / "manifest.json").write_text("{")
    assert kind_of(index) is UnreadableError


def test_stages_say_what_kind_of_trouble_it_is(index: str, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "others", clustered(30))
    again = {"embeddings": f"{tmp_path}/others", "out": index}
    with pytest.raises(OtherModelError, match="made with"):
        reco_ray.index(**again)
    with pytest.raises(SettingError, match="neither Flat"):
        reco_ray.index(**again | {"out": f"{tmp_path}/other"}, set=["index.factory=HNSW32"])
    with pytest.raises(SettingError, match="unknown preset"):
        load_settings("huge")
    with pytest.raises(MissingError, match="is not there"):
        reco_ray.index(embeddings=f"{tmp_path}/none", out=f"{tmp_path}/other")
    with pytest.raises(UnreadableError, match="holds index, but embeddings"):
        read_manifest(index, EmbeddingsContent)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(errno.ENOENT, "gone"), MissingError),
        (NotADirectoryError(errno.ENOTDIR, "a file"), MissingError),
        (OSError(errno.ENOSPC, "full"), NoRoomError),
        (PermissionError(errno.EACCES, "closed"), UnreadableError),
    ],
)
def test_what_the_system_refuses_has_a_kind(error: OSError, kind: type[RecoError]) -> None:
    assert type(file_error("a line", error)) is kind
    with pytest.raises(kind, match="x: cannot be read"), storage.explained_errors("x"):
        raise error


def test_no_permission_to_write_is_not_called_unreadable() -> None:
    with pytest.raises(RecoError) as caught, storage.explained_errors("x", "cannot be written"):
        raise PermissionError(errno.EACCES, "closed")
    assert caught.type is RecoError


@pytest.mark.parametrize("kind", [RecoError, NoRoomError, MissingPackageError, StoreUnavailable])
def test_a_worker_s_error_keeps_its_kind_and_its_line(kind: type[RecoError]) -> None:
    found = unpack(pack(kind('of "this" kind')))
    assert (type(found), str(found)) == (kind, 'of "this" kind')
    assert type(unpack('["NobodyKnowsIt", "line"]')) is RecoError


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "cuSOLVER error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "could not create a memory object",
        "std::bad_alloc",
    ],
)
def test_every_way_of_running_out_of_memory_is_known(message: str) -> None:
    assert out_of_memory(RuntimeError(message))
    assert not out_of_memory(ValueError(message))


def test_other_errors_of_a_gpu_are_not_taken_for_it() -> None:
    for message in (
        "CUDA error: device-side assert triggered",
        "CUBLAS_STATUS_EXECUTION_FAILED",
        "no kernel image",
    ):
        assert not out_of_memory(RuntimeError(message))
