"""A rehearsal of a cluster: `cluster/local.py`'s raylets with token authentication, and jobs submitted to them."""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import descendants, title

ROOT = Path(__file__).parents[2]
NODES = ["CPU=1,decode=4", "CPU=1,GPU=1,model=1"]
BIN = Path(sys.executable).parent


class Local(NamedTuple):
    """The cluster: what jobs are submitted to, and an environment that holds the token."""

    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Local]:
    """Two nodes; after the tests their process stops them, and nothing of them is left."""
    inherited = {n: v for n, v in os.environ.items() if n not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment = {
        **inherited,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "cluster/local.py", *(word for node in NODES for word in ("--node", node))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    printed: dict[str, str] = {}
    try:
        while "ready" not in printed and (line := process.stdout.readline()):
            name, value = line.split()[:2]
            printed[name] = value
        assert printed.get("ready") == "2"
        yield Local(printed["dashboard"], environment)
    finally:
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not [title(pid) for pid in below if "raylet" in title(pid) or "gcs_server" in title(pid)]


def ray(cluster: Local, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
    """`ray job ...`, as somebody at another machine gives it."""
    command, *rest = words
    hidden = () if token else ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    return subprocess.run(
        [str(BIN / "ray"), "job", command, "--address", cluster.dashboard, *rest],
        cwd=ROOT,
        env={n: v for n, v in cluster.environment.items() if n not in hidden},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )


def submit(cluster: Local, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return ray(cluster, "submit", *options, "--working-dir", ".", "--", *words)


def test_a_job_has_the_code_of_its_working_directory_and_no_more(cluster: Local) -> None:
    look = "import os, reco_ray; print('code:', reco_ray.__file__); print('files:', *sorted(os.listdir()))"
    done = submit(cluster, "python", "-c", look)
    assert done.returncode == 0, done.stdout
    code, files = re.findall(r"^(?:code|files): (.*)$", done.stdout, re.MULTILINE)
    assert "/working_dir_files/" in code  # and not the reco-ray that is installed
    assert {"jobs", "reco_ray", "serve", "cluster", "pyproject.toml"} <= set(files.split())
    assert not {"docs", "tests", "benchmarks", ".git", "README.md"} & set(files.split())


def test_without_the_token_nothing_is_taken(cluster: Local) -> None:
    refused = ray(cluster, "list", token=False)
    assert refused.returncode != 0
    assert "401" in refused.stdout or "token" in refused.stdout.lower()


@pytest.mark.parametrize("node", ["CPU", "CPU=many", "CPU=1,,GPU=1", "CPU=-1"])
def test_a_node_that_cannot_be_is_refused(node: str) -> None:
    words = [sys.executable, "cluster/local.py", "--node", node]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected resources such as" in done.stderr
