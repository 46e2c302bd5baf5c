"""Who connects to Ray with TLS, or without it, learns at once what does not fit. The servers here are no Rays."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from certificates import make_certificates, variables

from reco_ray.distributed.reachability import check_reachable
from reco_ray.distributed.session import session
from reco_ray.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"), "127.0.0.1")


def serve(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Says one word to everybody who is welcome; hangs up on those who say what it does not understand."""
    with suppress(OSError):  # of the closed listener
        while True:
            connection = listener.accept()[0]
            with connection, suppress(OSError):
                channel = context.wrap_socket(connection, server_side=True) if context else connection
                channel.sendall(b"welcome")
                channel.recv(1)


@pytest.fixture(params=["plain", "secure"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, str]]:
    """What it speaks, and its address."""
    context = None
    if request.param == "secure":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{folder}/ca.crt")
        context.load_cert_chain(f"{folder}/node.crt", f"{folder}/node.key")
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, args=(listener, context), daemon=True).start()
        yield request.param, f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("ours", ["none", "node", "other"])
def test_both_sides_must_speak_tls_with_certificates_of_one_ca(
    server: tuple[str, str], ours: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, address = server
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    for name, value in ({} if ours == "none" else variables(folder, ours)).items():
        monkeypatch.setenv(name, value)
    if (kind, ours) in (("plain", "none"), ("secure", "node")):
        check_reachable(address)
        return
    with pytest.raises(OSError, match="it speaks TLS: set RAY_USE_TLS" if ours == "none" else "TLS fails"):
        check_reachable(address)


def test_a_variable_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_TLS_SERVER_KEY")
    with pytest.raises(OSError, match="RAY_USE_TLS is set, and RAY_TLS_SERVER_KEY is not"):
        check_reachable("127.0.0.1:1")


@pytest.mark.parametrize("named", ["option", "environment"])
def test_addresses_of_rays_client_are_refused_with_what_works(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    given = "ray://head:10001" if named == "option" else None
    with (
        pytest.raises(UsageError, match=r"^ray://head:10001: .*ray job submit.*--address auto$"),
        session(given),
    ):
        pass
