"""docs/client.md does what it says: its fenced examples run in order, as written, but for the address."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from images import encoded, photograph
from page_steps import CAT
from PIL import Image

pytestmark = pytest.mark.cpus(4)

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
ADDRESS = "http://127.0.0.1:8000"


def examples(language: str, service: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    assert all(ADDRESS in block or language == "python" for block in blocks)
    return [block.replace(ADDRESS, service.rstrip("/")) for block in blocks]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(encoded(photograph(CAT, 200)))
    return tmp_path


@pytest.fixture(autouse=True)
def no_pets(service: str) -> Iterator[None]:
    yield
    requests.delete(service + "v1/vocabularies/pets", timeout=30)  # of an example that failed half-way


def test_python(service: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in examples("python", service):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "of the image, mean score" in printed
    assert "ready: " in printed
    assert "failed: image" in printed
    assert "404 " in printed
    assert Image.open(here / "overlay.jpg").size == Image.open(here / "cat.jpg").size
    assert Image.open(here / "why-cat.jpg").width > 100


def test_curl(service: str, here: Path) -> None:
    assert shutil.which("curl"), "curl is not installed"
    for block in examples("sh", service):
        done = subprocess.run(["sh", "-e", "-c", block], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{block}\n{done.stderr}{done.stdout}"
    answer = json.loads((here / "answer.json").read_text())
    assert [entry["name"] for entry in answer["legend"]] == ["cat", "dog", "bird"]
    with Image.open(here / "mask.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (answer["width"], answer["height"])
    assert Image.open(here / "overlay.jpg").width == answer["width"]
    assert len(json.loads((here / "hits.json").read_text())["hits"]) == 3
    assert Image.open(here / "hit.jpg").format == "JPEG"
