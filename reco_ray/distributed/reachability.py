"""Tests the connection to a cluster before Ray does, which would retry for minutes."""

import os
import socket
import ssl

_SECONDS = 10


def check_reachable(address: str) -> None:
    """Connects to "host:port" of a cluster, with the certificates that Ray would use.

    Raises:
        OSError: the connection is refused, only one side uses TLS, or a certificate is rejected.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    host = host.strip("[]")
    secure = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    context = _ray_context() if secure else _unverified_context()
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host) as channel:
                # The server sends bytes only after it has accepted our certificate.
                if secure and channel.recv(1):
                    return
        except OSError as error:
            if not secure:
                return
            raise OSError(
                f"TLS fails ({_tls_reason(error)}): see RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT"
            ) from error
    if secure:
        raise OSError("TLS fails (the other side hangs up): see RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT")
    raise OSError(
        "it speaks TLS: set RAY_USE_TLS=1 and RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY"
    )


def _ray_context() -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=os.environ["RAY_TLS_CA_CERT"])
        context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    except KeyError as error:
        raise OSError(f"RAY_USE_TLS is set, and {error.args[0]} is not") from error
    return context


def _unverified_context() -> ssl.SSLContext:
    """Accepts any certificate: used only to detect TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _tls_reason(error: OSError) -> str:
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
