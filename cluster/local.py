"""A cluster of several raylets on this machine, with whatever GPUs and custom resources one claims: for rehearsals.

    python cluster/local.py --node CPU=2,decode=8 --node CPU=1,GPU=1 --node CPU=1,GPU=1

The first node is the head. Prints the address, waits for Ctrl-C (or SIGTERM), stops what it started and nothing else.
The dashboard, which takes jobs, listens on loopback; Ray's other ports, free ones, on all interfaces, where Ray looks
for a head at 127.0.0.1 all the same. All demand Ray's token, which is made if there is none.
A claimed GPU is a number to the scheduler: run stages with `--device cpu` on it.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from types import FrameType
from typing import Annotated, Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported

import typer
from ray.cluster_utils import Cluster

HOST = "127.0.0.1"


def parse_node(text: str) -> dict[str, float]:
    """ "CPU=2,decode=8" -> what a node claims to have.

    Raises:
        typer.BadParameter: not of this form.
    """
    claimed = {}
    for part in text.split(","):
        name, _, amount = part.partition("=")
        try:
            claimed[name.strip()] = float(amount)
        except ValueError:
            amount = ""
        if not amount or not name.strip() or not 0 <= claimed[name.strip()] < 1e6:
            raise typer.BadParameter(f"{text!r}: expected resources such as CPU=2,GPU=1,decode=8")
    return claimed


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def make_token() -> None:
    """Has Ray write a token to its file, unless there is one.

    Raises:
        SystemExit: it cannot be written.
    """
    ray = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    done = subprocess.run(ray, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip() or "no reason given").splitlines()[-1]
        sys.exit(
            f"error: Ray cannot write its token ({why}): set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file"
        )


def start(nodes: list[dict[str, float]], memory_mb: int, dashboard_port: int | None) -> Cluster:
    """Starts the raylets; the caller shuts the cluster down."""
    dashboard: dict[str, Any] = {"include_dashboard": False}
    if dashboard_port is not None:
        dashboard = {"include_dashboard": True, "dashboard_host": HOST, "dashboard_port": dashboard_port}
    if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        make_token()
    cluster = Cluster()
    try:
        for number, claimed in enumerate(nodes):
            # A folder each, as machines have: in one of all, a node unpacks a job's code over that which others run.
            folder = {"temp_dir": f"{tempfile.gettempdir()}/ray/node{number}"}
            cluster.add_node(
                num_cpus=claimed.get("CPU", 0),
                num_gpus=claimed.get("GPU", 0),
                resources={name: amount for name, amount in claimed.items() if name not in ("CPU", "GPU")},
                object_store_memory=memory_mb * 2**20,
                dashboard_agent_listen_port=None,  # a free one: the head's would be 52365, which others have
                **(folder if number else dashboard | {"gcs_server_port": free_port()}),
            )
        cluster.wait_for_nodes()
    except BaseException:
        cluster.shutdown()
        raise
    return cluster


def main(
    node: Annotated[
        list[str] | None, typer.Option(help="resources of a node, such as CPU=2,GPU=1; repeatable")
    ] = None,
    memory: Annotated[int, typer.Option(min=80, help="object store of a node, MB")] = 200,
    dashboard: Annotated[bool, typer.Option(help="start the dashboard, which takes jobs")] = True,
) -> None:
    """Starts raylets on this machine, prints their address, waits, and stops them."""
    nodes = [parse_node(text) for text in node or ["CPU=1,decode=4", "CPU=1,GPU=1", "CPU=1,GPU=1"]]
    stop = threading.Event()

    def asked_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    port = free_port() if dashboard else None
    cluster = start(nodes, memory, port)
    # After the start, which sets a handler of Ray's own: that one drains a node for half a minute.
    signal.signal(signal.SIGTERM, asked_to_stop)
    signal.signal(signal.SIGINT, asked_to_stop)
    try:
        print(f"address    {cluster.address}", flush=True)
        if port is not None:
            print(f"dashboard  http://{HOST}:{port}", flush=True)
        print(f"ready      {len(nodes)} nodes; Ctrl-C stops them", flush=True)
        stop.wait()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    app.command()(main)
    app()
