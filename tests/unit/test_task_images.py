"""Images of annotation tasks: fetched from where the server's owner allows, and from nowhere else."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_host import PHOTO, ImageHost, image_host

from reco_ray.errors import UsageError
from reco_ray.serving.problems import Problem
from reco_ray.serving.task_images import TOKEN, TaskImages, is_below, require_prefixes


@pytest.fixture
def studio() -> Iterator[ImageHost]:
    with image_host() as host:
        yield host


@pytest.fixture
def other() -> Iterator[ImageHost]:
    with image_host() as host:
        yield host


def refused(images: TaskImages, address: object) -> str:
    with pytest.raises(Problem) as raised:
        images.read(address)
    assert raised.value.status == 422
    return raised.value.detail


def test_nothing_is_fetched_unless_it_is_allowed(other: ImageHost, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    images = TaskImages(None, [], 1000)
    allow = "this server does not fetch it: start it with"
    assert f"{allow} --label-studio URL or --fetch PREFIX" in refused(images, f"{other.url}/a.jpg")
    for address in (
        "/data/upload/1/a.jpg",
        str(tmp_path / "a.jpg"),
        f"file://{tmp_path}/a.jpg",
        "s3://bucket/a.jpg",
        "ftp://host/a.jpg",
        "http://169.254.169.254/latest/meta-data",
        "//host/a.jpg",
        "",
        None,
        5,
    ):
        assert refused(images, address)
    assert not other.asked
    assert images.read("data:image/jpeg;base64," + base64.b64encode(PHOTO).decode()) == PHOTO


def test_label_studio_is_asked_with_the_token_and_others_without(
    studio: ImageHost, other: ImageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    images = TaskImages(studio.url, [f"{other.url}/photos"], 1000)
    assert (
        images.read("/data/upload/1/a.jpg")
        == images.read(f"{studio.url}/tasks/5/resolve/?fileuri=x")
        == PHOTO
    )
    assert studio.asked == [
        ("/data/upload/1/a.jpg", "Token secret"),
        ("/tasks/5/resolve/?fileuri=x", "Token secret"),
    ]
    assert images.read(f"{other.url}/photos/a.jpg?x=1") == PHOTO
    studio.redirects["/data/b.jpg"] = f"{other.url}/photos/b.jpg"
    assert images.read("/data/b.jpg") == PHOTO
    assert other.asked == [("/photos/a.jpg?x=1", None), ("/photos/b.jpg", None)]
    assert "does not fetch it" in refused(images, f"{other.url}/private.jpg")
    for inside in ("/api/users", "/data/../api/users", "/tasks/5/", "/user/login", "/"):
        assert "does not fetch it" in refused(images, inside)
        assert "does not fetch it" in refused(images, studio.url + inside)
    studio.redirects["/data/c.jpg"] = f"{other.url}/private.jpg"
    assert "does not fetch it" in refused(images, "/data/c.jpg")
    assert len(other.asked) == 2
    assert "too large" in refused(TaskImages(studio.url, [], 3), "/data/a.jpg")


def test_a_personal_token_is_exchanged(studio: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "a.b.c")
    assert TaskImages(studio.url, [], 1000).read("/data/a.jpg") == PHOTO
    assert studio.asked == [("/api/token/refresh", "a.b.c"), ("/data/a.jpg", "Bearer for minutes")]


@pytest.mark.parametrize(
    "address",
    [
        "http://host:81/a/x.jpg",
        "https://host/a/x.jpg",
        "http://host.evil/a/x.jpg",
        "http://evil/a/x.jpg",
        "http://host@evil/a/x.jpg",
        "http://evil@host/a/x.jpg",
        "http://host\\@evil/a/x.jpg",
        "http://host/ab/x.jpg",
        "http://host/a/../b/x.jpg",
        "http://host/a/%2e%2e/b/x.jpg",
        "http://host/a/%252e%252e/b/x.jpg",
        "http://host/a/..\\b/x.jpg",
        "http://host/a/x.jpg\r\nX: y",
        "http://host:x/a/x.jpg",
        "http://[host/a/x.jpg",
        "http:///a/x.jpg",
    ],
)
def test_what_is_not_below_a_prefix(address: str) -> None:
    assert not is_below(address, "http://host/a/")


def test_what_is_below_a_prefix() -> None:
    assert is_below("http://HOST:80/a/b/c%20d.jpg?e=f#g", "http://host/a/")
    assert is_below("s3://bucket/a/b.jpg", "s3://bucket/a/")
    assert not is_below("s3://bucket/ab.jpg", "s3://bucket/a/")
    assert not is_below("s3://bucket/a/../b.jpg", "s3://bucket/a/")


def test_addresses_that_a_server_cannot_be_started_with() -> None:
    require_prefixes("http://127.0.0.1:8080", ["s3://bucket/a", "https://host"])
    for studio, prefix in (
        ("localhost:8080", []),
        ("s3://bucket", []),
        (None, ["/data"]),
        (None, ["file:///data"]),
    ):
        with pytest.raises(UsageError, match="expected an address such as"):
            require_prefixes(studio, prefix)
