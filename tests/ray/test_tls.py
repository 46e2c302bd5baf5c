"""TLS between the parts of Ray, with the certificates of docs/security.md."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from certificates import make_certificates, variables
from clusters import BIN, Rehearsal, rehearsal
from images import write_photographs
from ray.util import get_node_ip_address

from reco_ray.contents import EmbeddingsContent
from reco_ray.distributed.reachability import check_reachable
from reco_ray.files.artifacts import read_manifest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]  # chaos only for the time it takes


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"), get_node_ip_address())


@pytest.fixture(scope="module")
def cluster(certificates: Path) -> Iterator[Rehearsal]:
    with rehearsal("CPU=1", "CPU=1", **variables(certificates)) as started:
        yield started


def embed(cluster: Rehearsal, out: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    write_photographs(out.parent / "photographs", 6)
    environment = cluster.environment | changed
    words = ["--corpus", out.parent / "photographs", "--out", out, "--set", "embed.shard_size=3"]
    return subprocess.run(
        [str(BIN / "reco-ray"), "embed", "--address", cluster.address, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_stage_runs_where_everybody_shows_a_certificate(
    cluster: Rehearsal, certificates: Path, tmp_path: Path
) -> None:
    done = embed(cluster, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert read_manifest(str(tmp_path / "out"), EmbeddingsContent).counts["embedded"] == 6


def test_who_has_no_certificate_of_the_ca_is_refused_at_once(
    cluster: Rehearsal, certificates: Path, tmp_path: Path
) -> None:
    for changed, says in (
        ({"RAY_USE_TLS": "0"}, "it speaks TLS: set RAY_USE_TLS=1"),
        (variables(certificates, "other"), "TLS fails"),
    ):
        done = embed(cluster, tmp_path / "out", **changed)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: no Ray cluster answers at {cluster.address}: {says}")


def test_the_ports_through_which_objects_travel_speak_tls(
    cluster: Rehearsal, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["NodeManagerAddress", "NodeManagerPort", "ObjectManagerPort"]
    look = (
        f"import json, ray; ray.init('{cluster.address}', log_to_driver=False); "
        f"print(json.dumps([[node[name] for name in {names}] for node in ray.nodes()]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", look], env=cluster.environment, capture_output=True, text=True, check=True
    )
    nodes = json.loads(found.stdout.splitlines()[-1])
    assert len(nodes) == 2
    for address, *ports in nodes:
        for port in ports:
            monkeypatch.setenv("RAY_USE_TLS", "0")
            with pytest.raises(OSError, match="it speaks TLS"):
                check_reachable(f"{address}:{port}")
            for node in ("node", "other"):
                for name, value in variables(certificates, node).items():
                    monkeypatch.setenv(name, value)
                with nullcontext() if node == "node" else pytest.raises(OSError, match="TLS fails"):
                    check_reachable(f"{address}:{port}")
