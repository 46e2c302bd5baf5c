"""A plan against a real run: rates of a small one, through the commands, tell what a larger one takes."""

from pathlib import Path

import pytest
from images import write_photographs

from reco_ray.cli import main
from reco_ray.files import artifacts
from reco_ray.files.artifacts import Content
from reco_ray.pipeline import read_pipeline
from reco_ray.planning.estimate import Estimate, estimate
from reco_ray.planning.nodes import parse_nodes
from reco_ray.planning.rate_file import read_rates
from reco_ray.planning.workload import workloads

SMALL, LARGE = 28, 56
WITHIN = 4  # the time of a run of seconds, on a machine that others use too
SETTINGS = """
embed: {shard_size: 4}
references: {exemplars: 2, image_size: 96}
segment: {shard_size: 4, image_size: 96}
models: {device: cpu}
"""

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process"), pytest.mark.timeout(240)]


def run(folder: Path, name: str, images: int, references: str | None = None) -> str:
    """Runs a pipeline on photographs; builds references unless they are given."""
    place = folder / name
    write_photographs(place / "images", images)
    (folder / "settings.yaml").write_text(SETTINGS)
    build = f"references: {{index: {place}/index, concepts: dog, out: {place}/references}}"
    file = folder / f"{name}.yaml"
    file.write_text(f"""
settings: {folder}/settings.yaml
stages:
  embed: {{corpus: {place}/images, out: {place}/embeddings}}
  index: {{embeddings: {place}/embeddings, out: {place}/index}}
  {build if references is None else ""}
  segment: {{references: {references or f"{place}/references"}, images: {place}/images, out: {place}/masks}}
""")
    main(["pipeline", str(file), "--out", str(folder / f"{name}.json")])
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline and a larger one, done; `rates.yaml` of the small one."""
    folder = tmp_path_factory.mktemp("planned")
    run(folder, "small", SMALL)
    run(folder, "large", LARGE, f"{folder}/small/references")
    return folder


@pytest.fixture
def planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Estimate]:
    """The larger pipeline as it is planned from the rates of the small one, by stage."""
    made = [str(folder / "small" / name) for name in ("embeddings", "index", "references", "masks")]
    capsys.readouterr()
    main(["rate", *made, "--machine", "this one"])
    (folder / "rates.yaml").write_text(capsys.readouterr().out)
    rates = read_rates(str(folder / "rates.yaml"))
    assert [rate.stage for rate in rates] == ["embed", "index", "references", "segment"]
    pipeline = workloads(read_pipeline(str(folder / "large.yaml")))
    return {work.stage: estimate(work, rates, [parse_nodes("CPU=2")], LARGE) for work in pipeline}


def test_a_plan_tells_what_a_larger_run_takes(folder: Path, planned: dict[str, Estimate]) -> None:
    for stage, name in (("embed", "embeddings"), ("segment", "masks")):
        manifest = artifacts.read_manifest(str(folder / "large" / name), Content)
        hours, gigabytes = planned[stage].hours, planned[stage].gigabytes
        assert hours is not None
        assert gigabytes is not None
        assert manifest.checksums is not None
        assert manifest.seconds / WITHIN < hours * 3600 < manifest.seconds * WITHIN
        page = folder / "large" / name / "report" / "index.html"  # the same size for any number of images
        grows = manifest.checksums.bytes - (page.stat().st_size if page.exists() else 0)
        assert gigabytes * 1e9 == pytest.approx(grows, rel=0.15)
        assert planned[stage].workers == 2
    files = [
        file.stat().st_size
        for part in ("shards", "images")
        for file in (folder / "large/index" / part).iterdir()
    ]
    assert planned["index"].gigabytes is not None
    assert planned["index"].gigabytes * 1e9 == pytest.approx(sum(files), rel=0.15)


def test_the_plan_is_printed_for_a_billion(
    folder: Path, planned: dict[str, Estimate], capsys: pytest.CaptureFixture[str]
) -> None:
    file, rates = str(folder / "small.yaml"), str(folder / "rates.yaml")
    main(["plan", file, "--nodes", "4xCPU=8", "--nodes", "CPU=16", "--images", "1B", "--rates", rates])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["references"].split()[1:3] == ["6", "1"]
    assert rows["embed"].split()[-1] in (
        "workers",
        "readers",
    )  # which of them is slower differs between machines
    assert "no rate with index.kind=RR384,IVF_HNSW32,RaBitQ2 (measured: Flat)" in rows["index"]
    assert rows["total"].endswith("without index")
