"""Whether anybody is there, and speaks as we do: asked before Ray is, which would go on asking for minutes."""

import os
import socket
import ssl

_SECONDS = 10


def require_listener(address: str) -> None:
    """Connects to "host:port", of Ray or of a Ray client, and shows the certificates that Ray would show.

    Raises:
        OSError: nobody listens; TLS is spoken on one side only; one side does not accept the other's certificate.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    host = host.strip("[]")
    secure = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    context = _ours() if secure else _anybody()
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host) as channel:
                if secure and channel.recv(
                    1
                ):  # the server's first bytes: it has accepted our certificate by then
                    return
        except OSError as error:
            if not secure:
                return
            raise OSError(f"TLS fails ({_first(error)}): see RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT") from error
    if secure:
        raise OSError("TLS fails (the other side hangs up): see RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT")
    raise OSError(
        "it speaks TLS: set RAY_USE_TLS=1 and RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY"
    )


def _ours() -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=os.environ["RAY_TLS_CA_CERT"])
        context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    except KeyError as error:
        raise OSError(f"RAY_USE_TLS is set, and {error.args[0]} is not") from error
    return context


def _anybody() -> ssl.SSLContext:
    """Accepts any certificate: only to find out whether there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _first(error: OSError) -> str:
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
