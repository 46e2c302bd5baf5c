"""pipeline.yaml: read, checked, turned into requests."""

import json

import pytest
from vectors import clustered, write_embeddings

from reco_ray.cli.terminal import Terminal
from reco_ray.contents import IndexContent
from reco_ray.errors import RecoError, UsageError
from reco_ray.files.artifacts import read_manifest
from reco_ray.pipeline import read_pipeline, run_pipeline
from reco_ray.requests import EmbedRequest, EvaluateRequest, ExportMasksRequest, IndexRequest

GOOD = """
preset: mini
stages:
  index: {embeddings: out/embeddings, out: out/index}
  embed: {corpus: photographs, out: out/embeddings, set: [embed.shard_size=4, seed=1], device: cpu, follow: true}
  references:
    - {index: out/index, concepts: "cat, dog", out: out/pets}
    - {index: out/index, concepts: "car, bus", out: out/cars}
  evaluate: {benchmark: camvid, data: camvid, index: out/index}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "pipeline.yaml").write_text(GOOD)
    return str(tmp_path / "pipeline.yaml")


def test_steps_come_in_the_order_of_the_stages_as_requests(file) -> None:
    steps = read_pipeline(file)
    assert [step.stage for step in steps] == ["embed", "index", "references", "references", "evaluate"]
    assert steps[0].request == EmbedRequest(
        corpus="photographs",
        out="out/embeddings",
        set=["embed.shard_size=4", "seed=1"],
        device="cpu",
        follow=True,
    )
    assert steps[1].request == IndexRequest(embeddings="out/embeddings", out="out/index")
    assert isinstance(steps[4].request, EvaluateRequest)
    assert steps[4].request.benchmark == "camvid"


def test_preset_and_settings_of_the_file_hold_where_a_stage_names_none(tmp_path) -> None:
    text = (
        "{preset: paper, settings: s.yaml, stages: {index: [{embeddings: e}, {embeddings: e, preset: mini}]}}"
    )
    (tmp_path / "p.yaml").write_text(text)
    requests = [step.request for step in read_pipeline(str(tmp_path / "p.yaml"))]
    assert [(r.preset, r.settings) for r in requests] == [("paper", "s.yaml"), ("mini", "s.yaml")]


def test_a_stage_is_called_as_its_command(tmp_path) -> None:
    stages = "export-masks: {masks: m, format: coco, out: o, min_area: 3}, segment: {references: r, images: i, out: m}"
    text = f"stages: {{{stages}}}"
    (tmp_path / "p.yaml").write_text(text)
    segment, export = read_pipeline(str(tmp_path / "p.yaml"))
    assert (segment.stage, export.stage) == ("segment", "export-masks")
    assert export.request == ExportMasksRequest(masks="m", format="coco", out="o", min_area=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "stages: {embed: {corpus: a, out: b, speed: 3}}",
            r"stages\.embed\.speed: there is no such option",
        ),
        ("stages: {embed: {corpus: a}}", r"stages\.embed\.out: is needed"),
        ("stages: {embed: {corpus: [a, b], out: c}}", r"stages\.embed\.corpus: takes one value"),
        ("stages: {paint: {}}", r"stages\.paint: there is no such field"),
        ("stage: {}", "there is no such field|field required"),
        ("stages: {}", "no stages"),
        ("stages: [", "cannot be read"),
        ("", "valid dictionary"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, text, says) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_pipeline(str(tmp_path / "p.yaml"))
    assert len(str(caught.value).splitlines()) == 1


def test_steps_run_in_turn_say_what_they_did_and_go_on(tmp_path, capsys) -> None:
    """Of the one stage that needs no cluster."""

    def run(*sources: str) -> dict:
        steps = [
            {"embeddings": f"{tmp_path}/{source}", "out": f"{tmp_path}/{source}-index"} for source in sources
        ]
        (tmp_path / "p.yaml").write_text(json.dumps({"stages": {"index": steps}}))
        try:
            file = str(tmp_path / "p.yaml")
            run_pipeline(file, read_pipeline(file), f"{tmp_path}/summary.json", Terminal())
        finally:
            summary = json.loads((tmp_path / "summary.json").read_text())
            states.append((summary["state"], [(s["stage"], s["state"]) for s in summary["steps"]]))
        return summary

    states: list = []
    for name, count in (("small", 20), ("large", 40)):
        write_embeddings(tmp_path / name, clustered(count))
    summary = run("small", "large")
    assert summary["pipeline"] == f"{tmp_path}/p.yaml"
    assert summary["steps"][1]["options"]["out"] == f"{tmp_path}/large-index"
    assert read_manifest(f"{tmp_path}/large-index", IndexContent).counts["images"] == 40
    assert "nothing to do" not in capsys.readouterr().err
    run("small", "large")
    assert capsys.readouterr().err.count("nothing to do, made before") == 2
    with pytest.raises(RecoError, match="is not there"):
        run("small", "none", "large")
    done = ("index", "done")
    assert states == [("done", [done] * 2), ("done", [done] * 2), ("failed", [done, ("index", "failed")])]
    assert "is not there" in json.loads((tmp_path / "summary.json").read_text())["steps"][1]["error"]
