"""The server as an ML backend of Label Studio, asked as its `ml/api_connector.py` (1.23) asks; and its formats."""

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
from format_readers import read_with
from image_host import ImageHost
from images import encoded, photograph
from page_steps import CAT
from pycocotools.coco import COCO
from requests.auth import HTTPBasicAuth
from servers import Server, await_vocabulary

pytestmark = pytest.mark.cpus(4)
BACKEND = "v1/extensions/label-studio"
CONFIG = """
<View>
  <Header value="What is where?"/>
  <Image name="photo" value="$picture"/>
  <BrushLabels name="what" toName="photo"><Label value="cat"/><Label value="dog" background="red"/></BrushLabels>
</View>
"""


def ask(service: str, path: str, body: dict[str, Any] | None) -> requests.Response:
    """As Label Studio does: JSON by POST, all else by GET, Basic authentication if it is configured."""
    url, auth = f"{service}{BACKEND}/{path}", HTTPBasicAuth("label-studio", "no key is needed")
    return requests.get(url, auth=auth) if body is None else requests.post(url, json=body, auth=auth)


def predict_body(*images: str, config: str = CONFIG) -> dict[str, Any]:
    tasks = [
        {"id": number, "data": {"picture": image}, "predictions": []} for number, image in enumerate(images)
    ]
    params = {"login": None, "password": None, "context": None}
    return {"tasks": tasks, "project": "1.1700000000", "label_config": config, "params": params}


@pytest.fixture(scope="module")
def cat(studio: ImageHost) -> str:
    """The address of a photograph of 400 pixels in Label Studio."""
    studio.content["/data/upload/1/cat.jpg"] = encoded(photograph(CAT, 400))
    return "/data/upload/1/cat.jpg"


@pytest.fixture(scope="module")
def pets(server: Server) -> Iterator[str]:
    with server.client() as client:
        client.put("/v1/vocabularies/pets", json={"concepts": ["dog", "cat", "cup"]})
        assert await_vocabulary(client, "pets")["status"] == "ready"
        yield "pets"
        assert client.delete("/v1/vocabularies/pets").status_code == 204


def masks_of(prediction: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """The regions as Label Studio's own package decodes them, which also checks the prediction against the project."""
    (folder / "tasks").mkdir()
    (folder / "label-config.xml").write_text(CONFIG.replace("$picture", "$image"))
    task = {"data": {"image": "x", "uri": "x.jpg"}, "predictions": [prediction]}
    (folder / "tasks" / "a.json").write_text(json.dumps([task]))
    _, found = read_with("label_studio", folder, folder / "read.npz")
    return {each.concept: each.mask for each in found}


def test_an_annotator_gets_masks_for_the_labels_of_the_project(
    service: str, cat: str, studio: ImageHost, tmp_path: Path
) -> None:
    assert ask(service, "health", None).json()["status"] == "UP"
    setup = {
        "project": "1.17",
        "schema": CONFIG,
        "hostname": "http://evil",
        "access_token": "t",
        "extra_params": None,
    }
    version = ask(service, "setup", setup).json()["model_version"]
    assert version.startswith("reco-ray ")
    answer = ask(service, "predict", predict_body(cat, studio.url + cat)).json()
    assert answer["model_version"] == version
    first, second = answer["results"]
    assert first == second
    assert first["model_version"] == version
    assert 0 < first["score"] <= 1
    for region in first["result"]:
        assert (region["from_name"], region["to_name"], region["type"]) == ("what", "photo", "brushlabels")
        assert 0 < region["score"] <= 1
    masks = masks_of(first, tmp_path)
    assert set(masks) <= {"cat", "dog"}
    assert masks["cat"].shape == photograph(CAT, 400).size[::-1]
    assert masks["cat"].mean() > 0.1


def test_a_vocabulary_of_the_server(service: str, cat: str, pets: str) -> None:
    assert ask(service, f"{pets}/health", None).json()["status"] == "UP"
    assert (
        pets in ask(service, f"{pets}/setup", {"project": "1.17", "schema": CONFIG}).json()["model_version"]
    )
    (found,) = ask(service, f"{pets}/predict", predict_body(cat)).json()["results"]
    assert {region["value"]["brushlabels"][0] for region in found["result"]} <= {"cat", "dog"}
    assert found["result"]
    other = CONFIG.replace("cat", "ship").replace("dog", "boat")
    refused = ask(service, f"{pets}/setup", {"project": "1.17", "schema": other})
    assert refused.status_code == 422
    assert "none of its labels is a concept of pets, such as dog" in refused.json()["detail"]
    assert ask(service, "nobody/predict", predict_body(cat)).status_code == 404


def test_images_in_the_request_and_those_that_cannot_be_had(service: str, cat: str) -> None:
    inside = "data:image/jpeg;base64," + base64.b64encode(encoded(photograph(CAT, 100))).decode()
    elsewhere = "http://127.0.0.1:9/cat.jpg"
    answer = ask(service, "predict", predict_body(elsewhere, inside, "/etc/passwd")).json()
    nothing, found, no_image = answer["results"]
    assert (nothing, no_image) == ([], [])
    assert found["result"][0]["original_width"] == 100
    refused = ask(service, "predict", predict_body(elsewhere))
    assert refused.status_code == 422
    assert "this server does not fetch it" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        ("", "missing"),
        ("<View>", "not XML"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><View>&a;</View>', "with declarations"),
        ("<View><Image name='a' value='$b'/></View>", "has no <BrushLabels>"),
        (CONFIG.replace("Label value", "Label name"), "no labels"),
    ],
)
def test_a_project_without_a_brush_is_told_so(service: str, cat: str, config: str, detail: str) -> None:
    refused = ask(service, "predict", predict_body(cat, config=config))
    assert refused.status_code == 422
    assert detail in refused.json()["detail"]


@pytest.mark.parametrize("way", ["format", "Accept"])
def test_coco_and_label_studio_for_one_image(server: Server, photo: Path, tmp_path: Path, way: str) -> None:
    def asked(client: httpx.Client, form: str) -> Any:
        query = {"concepts": "cat,dog", "background": "true", "max_side": "150"}
        headers = {"Content-Type": "image/jpeg"}
        if way == "format":
            query["format"] = form
        else:
            headers["Accept"] = f"application/vnd.{form}+json"
        answer = client.post("/v1/segment", params=query, headers=headers, content=photo.read_bytes())
        assert answer.headers["content-type"] == f"application/vnd.{form}+json"
        return answer.json()

    with server.client() as client:
        document, prediction = asked(client, "coco"), asked(client, "label-studio")
        plain = client.post(
            "/v1/segment",
            params={"concepts": "cat,dog", "background": "true", "max_side": "150"},
            headers={"Content-Type": "image/jpeg"},
            content=photo.read_bytes(),
        ).json()
        refused = client.post(
            "/v1/segment:batch", json={"images": [""], "concepts": ["cat"], "format": "coco"}
        )
    assert refused.status_code == 422
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(document, file)
        file.flush()
        coco = COCO(file.name)
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert names == {1: "cat", 2: "dog"}
    (image,) = coco.loadImgs(1)
    assert (image["width"], image["height"]) == (plain["width"], plain["height"])
    areas = dict.fromkeys(names.values(), 0)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        areas[names[annotation["category_id"]]] += int(coco.annToMask(annotation).sum())
        assert 0 < annotation["score"] <= 1
    expected = {each["name"]: each["area"] for each in plain["concepts"] if each["label"]}
    assert {name: area for name, area in areas.items() if area} == expected
    masks = masks_of(
        {
            **prediction,
            "result": [{**r, "from_name": "what", "to_name": "photo"} for r in prediction["result"]],
        },
        tmp_path,
    )
    assert set(masks) == set(expected)
    assert all(mask.shape == photograph(CAT, 200).size[::-1] for mask in masks.values())
