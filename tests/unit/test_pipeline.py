"""pipeline.yaml: read, checked, turned into command lines; and what a plan makes of it."""

import pytest
import yaml

from reco_ray.cli import main
from reco_ray.config import StagePlacement, load_settings
from reco_ray.errors import RecoError
from reco_ray.pipeline import read_pipeline
from reco_ray.plan import Rate, estimate, parse_nodes

GOOD = """
preset: mini
stages:
  index: {embeddings: out/embeddings, out: out/index}
  embed: {corpus: photographs, out: out/embeddings, set: [embed.shard_size=4, seed=1], device: cpu}
  references:
    - {index: out/index, concepts: "cat, dog", out: out/pets}
    - {index: out/index, concepts: "car, bus", out: out/cars}
  evaluate: {benchmark: camvid, data: camvid, index: out/index}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "pipeline.yaml").write_text(GOOD)
    return str(tmp_path / "pipeline.yaml")


def test_steps_come_in_the_order_of_the_stages_as_command_lines(file) -> None:
    _, steps = read_pipeline(file)
    assert [step.stage for step in steps] == ["embed", "index", "references", "references", "evaluate"]
    embed = steps[0].words
    assert embed[0] == "embed"
    assert set(embed[1:]) == {
        "--corpus=photographs",
        "--out=out/embeddings",
        "--preset=mini",
        "--set=embed.shard_size=4",
        "--set=seed=1",
        "--device=cpu",
    }
    assert steps[1].words == ["index", "--embeddings=out/embeddings", "--out=out/index"]
    assert "camvid" in steps[4].words


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "stages: {embed: {corpus: a, out: b, speed: 3}}",
            r"stages\.embed\.speed: `reco-ray embed` has no such",
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
    with pytest.raises(RecoError, match=says) as caught:
        read_pipeline(str(tmp_path / "p.yaml"))
    assert len(str(caught.value).splitlines()) == 1


def test_nodes_add_up() -> None:
    assert parse_nodes(["4xCPU=8,GPU=1", "CPU=2"]) == {"CPU": 34.0, "GPU": 4.0}
    with pytest.raises(RecoError, match="expected a count and resources"):
        parse_nodes(["many"])


def rate(stage: str, **values: object) -> Rate:
    fields = {"preset": "mini", "device": "cuda", "worker_seconds": 0.01, "bytes_per_item": 1000.0}
    return Rate.model_validate({**fields, "stage": stage, "source": "here", "machine": "this", **values})


def test_the_formula_by_hand(file) -> None:
    _, steps = read_pipeline(file)
    settings = load_settings()
    quarter = StagePlacement(gpus_per_worker=0.25)
    settings = settings.model_copy(
        update={"placement": settings.placement.model_copy(update={"embed": quarter})}
    )
    nodes = {"CPU": 20.0, "GPU": 2.0}  # 8 workers of one CPU and a quarter of a GPU; 12 CPUs for 48 readers
    rates = [rate("embed", fixed_seconds=36.0, reader_seconds=0.02), rate("index", device="cpu")]
    embed, index, references, *_ = estimate(steps, settings, "mini", rates, nodes, 8_000_000, 20)
    assert embed.hours == pytest.approx((36 + 8e6 * 0.01 / 8) / 3600)
    assert embed.gpu_hours == pytest.approx(embed.hours * 2)
    assert embed.gigabytes == pytest.approx(8.0)
    assert embed.bottleneck == "workers"
    assert index.hours == pytest.approx(8e6 * 0.01 / 3600)
    assert index.gpu_hours == 0
    assert (references.items, references.hours) == (20, None)
    slow = [rate("embed", reader_seconds=1.0)]
    assert estimate(steps, settings, "mini", slow, nodes, 1000, 20)[0].bottleneck == "readers"


def test_the_command_prints_a_line_a_stage_and_size(file, tmp_path, capsys) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text(yaml.safe_dump([rate("embed", device="cpu").model_dump()]))
    main(["plan", file, "--nodes", "2xCPU=8", "--rates", str(rates), "--images", "500K,1B"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 5
    assert lines[1].split()[:3] == ["500,000", "embed", "500,000"]
    assert "no rate of mini" in lines[3]
