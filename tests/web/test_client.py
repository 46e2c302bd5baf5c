"""The client against a real service: what it gives is what the service said, and its errors are clear."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
from answer_pixels import label_map, rgb
from PIL import Image

from reco_ray.client import Client, Segmentation, ServiceBusy, ServiceError, VocabularyStatus
from reco_ray.errors import RecoError

pytestmark = pytest.mark.cpus(4)


@pytest.fixture
def client(service: str) -> Iterator[Client]:
    with Client(service, timeout=60, patience=60) as opened:
        yield opened


def test_importing_it_needs_neither_torch_nor_ray() -> None:
    check = "import sys, reco_ray.client; print(sorted({'torch', 'ray', 'faiss'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


def test_labels_are_what_the_service_answered(client: Client, service: str, photo: Path) -> None:
    answer = client.segment(photo, concepts=["cat", "dog"], max_side=150)
    with photo.open("rb") as file:
        fields = {"concepts": "cat,dog", "max_side": "150"}
        raw = requests.post(service + "v1/segment", files={"image": file}, data=fields, timeout=60).json()
    assert (answer.width, answer.height) == (raw["width"], raw["height"])
    assert max(answer.width, answer.height) == 150
    assert answer.labels.dtype == np.int32
    assert np.array_equal(answer.labels, label_map(raw))
    assert answer.legend == {entry["label"]: entry["name"] for entry in raw["legend"]}
    for found in answer.concepts:
        assert found.area == (answer.labels == found.label).sum()
        assert found.share == pytest.approx(found.area / answer.labels.size)


def test_a_path_bytes_and_a_picture_are_the_same(client: Client, photo: Path) -> None:
    answers = [
        client.segment(image, concepts=["cat", "dog"])
        for image in (photo, str(photo), photo.read_bytes(), Image.open(photo))
    ]
    for answer in answers[1:]:
        assert np.array_equal(answer.labels, answers[0].labels)


def test_the_overlay_mixes_colours_over_the_photograph(client: Client, photo: Path) -> None:
    answer = client.segment(photo, concepts=["cat", "dog"], background=True)
    mixed = np.asarray(answer.overlay(opacity=0.5)).astype(float)
    plain = np.asarray(Image.open(photo).convert("RGB")).astype(float)
    for found in answer.concepts:
        assert np.abs(mixed[found.mask] - (plain[found.mask] + rgb(found.colour)) / 2).max() <= 1


def test_a_batch_keeps_its_order_and_its_errors(client: Client, photo: Path) -> None:
    broken, missing_end = b"no picture", photo.read_bytes()[:200]
    results = client.segment_batch([broken, photo, missing_end, photo], concepts=["cat", "dog"])
    kinds = [type(result) for result in results]
    assert kinds == [ServiceError, Segmentation, ServiceError, Segmentation]
    assert isinstance(results[0], ServiceError)
    assert results[0].status == 422
    assert "image" in str(results[0])


def test_a_vocabulary_from_build_to_delete(client: Client, photo: Path) -> None:
    seen: list[VocabularyStatus] = []
    concepts = ["cat", {"name": "lap dog", "synonyms": ["small dog", "terrier"]}]
    state = client.build("client-pets", concepts, progress=seen.append, interval=0.1)
    assert (state.status, state.concepts, state.mine) == ("ready", ("cat", "lap dog"), True)
    assert seen[-1] == state
    assert state.done == state.total
    assert client.build("client-pets", concepts) == state  # nothing to do
    assert "client-pets" in [vocabulary.name for vocabulary in client.vocabularies()]
    answer = client.segment(photo, vocabulary="client-pets")
    assert answer.vocabulary == "client-pets"
    sheet = client.exemplars(next(concept.id for concept in answer.concepts if concept.id))
    assert sheet.width > 100
    client.delete("client-pets")
    with pytest.raises(ServiceError, match="client-pets") as refused:
        client.vocabulary("client-pets")
    assert refused.value.status == 404
    assert refused.value.request_id


def test_search(client: Client, service: str) -> None:
    hits = client.search("a cat", k=5)
    assert len(hits) == 5
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert (
        requests.get(service.rstrip("/") + hits[0].thumbnail, timeout=30).headers["Content-Type"]
        == "image/jpeg"
    )


def test_errors_say_what_is_wrong(client: Client, photo: Path) -> None:
    with pytest.raises(RecoError, match=r"nothing\.jpg: the image cannot be read: No such file"):
        client.segment("nothing.jpg", concepts=["cat"])
    with pytest.raises(RecoError, match="either concepts or a vocabulary"):
        client.segment(photo)
    with pytest.raises(RecoError, match="give a list"):
        client.segment(photo, concepts="cat, dog")
    with pytest.raises(ServiceError, match="nobody") as refused:
        client.segment(photo, vocabulary="nobody")
    assert refused.value.status == 404
    with pytest.raises(ServiceError, match="twice"):
        client.segment(photo, concepts=["cat", "Cat"])
    with pytest.raises(RecoError, match="http://"):
        Client("localhost:8000")


def test_nobody_answers() -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(ServiceError, match="Connection refused") as error,
    ):
        client.info()
    assert error.value.status is None


class _Busy(BaseHTTPRequestHandler):
    """Says that it is busy, twice, and what key it was asked with."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        busy = len(self.asked) <= 2
        body = json.dumps({"detail": "the queue is full"} if busy else {"version": "1"}).encode()
        self.send_response(503 if busy else 200)
        if busy:
            self.send_header("Retry-After", "0.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def busy_server() -> Iterator[str]:
    _Busy.asked = []
    with HTTPServer(("127.0.0.1", 0), _Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_busy_service_is_asked_again(busy_server: str) -> None:
    with Client(busy_server, key="a-key") as client:
        assert client.info() == {"version": "1"}
    assert _Busy.asked == ["Bearer a-key"] * 3


def test_patience_ends(busy_server: str) -> None:
    with Client(busy_server, patience=0) as client, pytest.raises(ServiceBusy, match="queue is full"):
        client.info()
    assert len(_Busy.asked) == 1


def test_an_answer_of_another_service_is_one_line(busy_server: str) -> None:
    with (
        Client(busy_server) as client,
        pytest.raises(ServiceError, match=r"\(vocabularies\): is this a reco-ray"),
    ):
        client.vocabularies()
