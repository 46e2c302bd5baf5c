"""The server on a cluster of two nodes, as `serve deploy` brings it there, while parts of it are killed under load."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from images import encoded, photograph, write_photographs
from processes import descendants, title
from ray.cluster_utils import Cluster
from servers import await_vocabulary, free_port

from reco_ray.config import load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
SET = ["references.exemplars=2", "references.image_size=96", "segment.image_size=96"]
PHOTO = encoded(photograph(0, 96))
CLIENTS = 3
CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


@dataclass
class Deployed:
    """The application on its cluster."""

    cluster: Cluster
    second: Any  # the node that may be lost: without the head's processes and without the proxy
    url: str

    def replicas(self, kind: str) -> list[int]:
        """Processes of a deployment, or others of Serve by their title."""
        nodes = [self.cluster.head_node, *self.cluster.worker_nodes]
        return [pid for node in nodes for pid in replicas_on(node, kind)]


def replicas_on(node: Any, kind: str) -> list[int]:
    roots = [process.pid for _, process in node.live_processes()]
    found = {pid for root in roots for pid in descendants(root)}
    return [pid for pid in found if kind in title(pid)]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """serve/config.yaml with paths and a port of this machine, two replicas of what may have several."""
    folder = tmp_path_factory.mktemp("chaos")
    write_photographs(folder / "corpus", 12)
    config = yaml.safe_load(CONFIG.read_text())
    config["proxy_location"] = "HeadOnly"  # both nodes are this machine, and would want the same port
    config["http_options"]["port"] = port = free_port()
    config["applications"][0]["args"] |= {
        "index": str(folder / "index"),
        "state": str(folder / "state"),
        "set": SET,
        "scale": {"ingress": [2, 2], "models": [2, 3], "lanes": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        dashboard = free_port()
        head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": dashboard}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            settings = load_settings("mini", overrides=SET)
            embed_corpus(str(folder / "corpus"), str(folder / "embeddings"), settings)
            build_index(str(folder / "embeddings"), str(folder / "index"))
            second = cluster.add_node(num_cpus=2)
            command = [str(Path(sys.executable).with_name("serve")), "deploy", str(folder / "config.yaml")]
            done = subprocess.run(
                [*command, "-a", f"http://127.0.0.1:{dashboard}"], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            found = Deployed(cluster, second, f"http://127.0.0.1:{port}")
            await_that(lambda: _ready(found.url), "the application is not ready")
            yield found
        finally:
            ray.shutdown()
            cluster.shutdown()


def await_that(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.3)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Load:
    """Clients that ask one after another, with a short pause, until they are stopped."""

    url: str
    outcomes: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as client:
            while not self._done.wait(0.1):
                try:
                    answer = client.post("/v1/segment", params={"vocabulary": "animals"}, content=PHOTO)
                    self.outcomes.append(str(answer.status_code))
                except httpx.TransportError as error:
                    self.outcomes.append(type(error).__name__)

    def await_answers(self, count: int = 10) -> None:
        """Returns when so many have been good one after another."""
        begin = len(self.outcomes)
        await_that(
            lambda: len(self.outcomes) >= begin + count and set(self.outcomes[-count:]) == {"200"},
            f"it does not serve again: {self.outcomes[-30:]}",
        )

    def tell(self, killed: str, begin: int) -> int:
        """Prints what came of the requests since `begin`; where those of the next kill begin."""
        end = len(self.outcomes)
        print(f"{killed}: {dict(Counter(self.outcomes[begin:end]))}")
        return end


def test_any_ingress_replica_knows_of_a_vocabulary(deployed: Deployed) -> None:
    assert len(deployed.replicas("ServeReplica:reco:Ingress")) == 2
    with httpx.Client(base_url=deployed.url, timeout=120) as client:
        assert client.put("/v1/vocabularies/animals", json={"concepts": ["dog", "cup"]}).status_code == 202
        assert await_vocabulary(client, "animals")["status"] == "ready"
        states = [client.get("/v1/vocabularies/animals").json()["status"] for _ in range(12)]
        answers = [
            client.post("/v1/segment", params={"vocabulary": "animals"}, content=PHOTO) for _ in range(12)
        ]
    assert set(states) == {"ready"}
    assert [answer.status_code for answer in answers] == [200] * 12


def test_what_is_killed_under_load_is_replaced_and_costs_no_more_than_it_held(deployed: Deployed) -> None:
    """In turn the controller with a replica of Models, the VocabularyService, an ingress replica, and a whole node."""

    def kill(kind: str) -> None:
        victim, *others = deployed.replicas(kind)
        os.kill(victim, signal.SIGKILL)
        await_that(lambda: len(set(deployed.replicas(kind)) - {victim}) > len(others), f"{kind} stays away")

    with Load(deployed.url) as load:
        load.await_answers()
        begin = load.tell("nothing", 0)
        os.kill(deployed.replicas("ServeController")[0], signal.SIGKILL)
        for kind in ("Models", "VocabularyService", "Ingress"):
            kill(f"ServeReplica:reco:{kind}")  # which the new controller replaces
            load.await_answers()
            begin = load.tell(kind, begin)
        assert replicas_on(deployed.second, "ServeReplica:reco:"), "nothing runs there that could be lost"
        deployed.cluster.remove_node(deployed.second, allow_graceful=False)
        await_that(
            lambda: len(replicas_on(deployed.cluster.head_node, "ServeReplica:reco:Models")) == 2,
            "what the node ran is not replaced",
        )
        load.await_answers()
        load.tell("node", begin)
    counts = Counter(load.outcomes)
    # An ingress replica that dies takes with it what the clients had under way there: once by itself, once by its node.
    lost = sum(count for outcome, count in counts.items() if outcome not in ("200", "503"))
    assert lost <= 2 * CLIENTS, counts
