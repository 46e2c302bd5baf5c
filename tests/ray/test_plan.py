"""A plan against a real run: predicted from one corpus, checked on another."""

import json

import pytest
from images import write_photographs

from reco_ray.cli import main
from reco_ray.cluster import plan_workers
from reco_ray.config import load_settings
from reco_ray.errors import RecoError
from reco_ray.pipeline import read_pipeline, run_pipeline
from reco_ray.plan import estimate, measure, size_of
from reco_ray.storage import read_manifest

WITHIN = 3.0  # the time of a run of seconds, on a machine that others use too


def write(folder, name: str, images: int) -> str:
    write_photographs(folder / f"{name}-images", images)
    file = folder / f"{name}.yaml"
    file.write_text(
        f"stages:\n"
        f"  embed: {{corpus: {folder}/{name}-images, out: {folder}/{name}, set: [embed.shard_size=4], device: cpu}}\n"
        f"  index: {{embeddings: {folder}/{name}, out: {folder}/{name}-index}}\n"
    )
    return str(file)


def test_a_pipeline_runs_resumes_and_takes_what_was_planned(ray_cluster, tmp_path) -> None:
    for name, images in (("small", 24), ("large", 48)):
        run_pipeline(write(tmp_path, name, images), str(tmp_path / f"{name}.json"))
    summary = json.loads((tmp_path / "large.json").read_text())
    assert summary["state"] == "done"
    assert [step["state"] for step in summary["steps"]] == ["done", "done"]

    made_at = read_manifest(str(tmp_path / "large"), "embeddings").made_at
    main(["pipeline", str(tmp_path / "large.yaml"), "--out", str(tmp_path / "again.json")])
    assert read_manifest(str(tmp_path / "large"), "embeddings").made_at == made_at

    workers = plan_workers("cpu").count
    rates = [measure(str(tmp_path / "small"), "mini", workers, "cpu", "this machine")]
    _, steps = read_pipeline(str(tmp_path / "large.yaml"))
    planned = estimate(steps, load_settings(), "mini", rates, {"CPU": 2.0}, 48, 1)[0]
    actual = read_manifest(str(tmp_path / "large"), "embeddings").seconds
    assert planned.hours is not None
    assert planned.gigabytes is not None
    assert actual / WITHIN < planned.hours * 3600 < actual * WITHIN
    assert planned.gigabytes * 1e9 == pytest.approx(size_of(str(tmp_path / "large")), rel=0.1)


def test_a_pipeline_that_fails_says_where(ray_cluster, tmp_path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(f"stages: {{index: {{embeddings: {tmp_path}/nothing, out: {tmp_path}/index}}}}")
    with pytest.raises(RecoError, match="is not there"):
        run_pipeline(str(file), str(tmp_path / "bad.json"))
    summary = json.loads((tmp_path / "bad.json").read_text())
    assert summary["state"] == "failed"
    assert "is not there" in summary["steps"][0]["error"]
