"""Whoever waits for a store is told so: real sockets that refuse, or accept and never answer."""

import socket
import threading

import pytest

from reco_ray.corpus import web
from reco_ray.files import retries, slow_requests
from reco_ray.files.retries import retried
from reco_ray.files.slow_requests import PendingRequest


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were told, after a twentieth of a second of silence."""
    lines: list[str] = []
    monkeypatch.setattr(slow_requests, "SILENCE", 0.05)
    monkeypatch.setattr(slow_requests, "_last_reported", {})
    monkeypatch.setattr(slow_requests, "_responsive", {""})
    monkeypatch.setattr(slow_requests, "print_line", lines.append)
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    return lines


def wait_for(lines: list[str]) -> None:
    while not lines:
        threading.Event().wait(0.01)


def test_a_store_that_refuses_is_named_with_what_changes_the_wait(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECO_RETRY_SECONDS", "100")

    def ask() -> str:
        if not told:
            raise OSError("Could not resolve host: name resolution failed")
        return "there"

    assert retried(ask, "s3://no-such-bucket/a.jpg") == "there"
    assert told == [
        "waiting    s3://no-such-bucket/a.jpg has not answered for 0.05 seconds (Could not resolve host: name "
        "resolution failed): it is asked again for 100 seconds (RECO_RETRY_SECONDS)"
    ]


def test_a_store_that_swallows_the_first_try_is_named(told: list[str]) -> None:
    retried(lambda: wait_for(told), "gs://bucket/a.jpg")
    assert told[0].startswith("waiting    gs://bucket/a.jpg has not answered for 0.05 seconds: it is asked")


def test_a_file_system_that_refuses_is_named_too(told: list[str]) -> None:
    def ask() -> None:
        if not told:
            raise TimeoutError("timed out")

    retried(ask, "/mnt/nfs/a.jpg")
    assert "/mnt/nfs/a.jpg has not answered" in told[0]


def test_an_address_of_a_list_is_named(told: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg"

        def answer() -> None:
            connection = listener.accept()[0]
            wait_for(told)
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")

        thread = threading.Thread(target=answer)
        thread.start()
        assert web.fetch(url, 10) == b"x"
        thread.join()
    assert told == [
        f"waiting    {url} has not answered for 0.05 seconds: each address gets three tries of 10 seconds to connect "
        "and 30 to answer, and is rejected then"
    ]


def test_what_is_only_large_is_not_named(told: list[str]) -> None:
    retried(lambda: None, "s3://bucket/small")
    slow = PendingRequest("s3://bucket/large", str, begun=-100.0)
    assert not slow_requests._is_due(slow, 0.0)
    slow.error = "HTTP status 503"  # it answered before, and refuses now
    assert slow_requests._is_due(slow, 0.0)


def test_the_same_store_is_named_once_a_minute(told: list[str]) -> None:
    request = PendingRequest("s3://other/a", str, error="HTTP status 503", begun=-100.0)
    slow_requests._last_reported["s3://other"] = 0.0
    assert not slow_requests._is_due(request, 59.0)
    assert slow_requests._is_due(request, 60.0)
    assert not slow_requests._is_due(
        PendingRequest("s3://third/a", str, error="x", begun=-100.0), 5.0
    )  # no flood of lines
