"""Starts and stops the server of `reco-ray serve`."""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from reco_ray.errors import RecoError, UsageError
from reco_ray.presentation.console import console
from reco_ray.serving.access import is_loopback
from reco_ray.serving.app import build, describe_gpus
from reco_ray.serving.options import ServeOptions

APPLICATION = "reco"
_DRAIN_SECONDS = 30.0
_START_SECONDS = 600.0


def require_keys(host: str, options: ServeOptions) -> None:
    """Requires API keys on addresses other than loopback.

    Raises:
        UsageError: the address is not a loopback one and there are no keys.
    """
    if options.keys is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, so keys are needed: make one with "
            "`reco-ray serve-key NAME`, and give its line in a file with --keys FILE"
        )


def run_server(options: ServeOptions, host: str, port: int, *, local: bool) -> None:
    """Serves on the connected Ray cluster until SIGINT or SIGTERM, then finishes pending requests.

    Args:
        local: the cluster was started by this process, so the port is checked on this machine.

    Raises:
        RecoError: the port is in use, or the application does not start.
    """
    application = build(options)
    if gpus := describe_gpus(options):
        console.print(f"gpus       {gpus}")
    if local:
        _require_free(host, port)
    with _quiet(), _interrupted_by_sigterm():
        try:
            try:
                handle = _run(application, host, port)
            except RayActorError:  # the cluster's Serve was still shutting down after an earlier server
                handle = _run(application, host, port)
            if error_line := handle.begin.remote().result(timeout_s=_START_SECONDS):
                raise RecoError(error_line)
            console.print(f"serving    http://{host if ':' not in host else f'[{host}]'}:{port}")
            _wait()
            console.print("draining   no new requests; Ctrl-C again stops at once")
            _drain(handle)
        except (RuntimeError, TimeoutError, RayError) as error:
            raise RecoError(f"the server does not start: {_cause()}") from error
        finally:
            _stop()


def _run(application: Application, host: str, port: int) -> DeploymentHandle:
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    return serve.run(application, name=APPLICATION, route_prefix="/")


def _wait() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _drain(handle: DeploymentHandle) -> None:
    """Stops accepting requests and waits until no image is pending, for at most 30 seconds."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    with contextlib.suppress(RayError, TimeoutError):  # a replica that dies now has nothing to drain
        while time.monotonic() < deadline and sum(handle.broadcast("drain").results(timeout_s=10)):
            time.sleep(0.2)


def _stop() -> None:
    """Deletes the application, and shuts Serve down if it was the only one."""
    if set(serve.status().applications) <= {APPLICATION}:
        serve.shutdown()
    else:
        serve.delete(APPLICATION)


def _require_free(host: str, port: int) -> None:
    """Raises RecoError if the port is in use: Serve would retry forever."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecoError(
                f"cannot listen on {host}:{port}: {error.strerror}: choose another --port or --host"
            ) from error


def _cause() -> str:
    """The last line of the message of a failed deployment."""
    with contextlib.suppress(Exception):
        for deployment in serve.status().applications[APPLICATION].deployments.values():
            if deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                return deployment.message.strip().splitlines()[-1]
    return "see the logs of Ray Serve in the session's directory"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Serve's log lines on the terminal; its log files keep them."""
    logger = logging.getLogger("ray.serve")
    before, logger.level = logger.level, logging.ERROR
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Handles SIGTERM, as sent by service managers, like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
