"""A rehearsal of a cluster: `cluster/local.py`'s raylets with token authentication, and jobs submitted to them."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import BIN, ROOT, Rehearsal, rehearsal
from images import write_photographs
from PIL import Image
from processes import descendants, title, wait_until

from reco_ray.contents import EmbeddingsContent, SegmenterContent, SweepContent
from reco_ray.files.artifacts import read_manifest
from reco_ray.pipeline import read_pipeline

NODES = ["CPU=1,decode=4", "CPU=1,GPU=1,model=1"]
PIPELINE = """
settings: {0}/settings.yaml
stages:
  embed: {{corpus: {0}/corpus, out: {0}/embeddings}}
  index: {{embeddings: {0}/embeddings, out: {0}/index}}
  references: {{index: {0}/index, concepts: "dog, sky", out: {0}/pets}}
  segment: {{references: {0}/pets, images: {0}/images, out: {0}/masks}}
  label: {{references: [{0}/pets], images: {0}/images, out: {0}/pseudo}}
  train: {{labels: [{0}/pseudo/pets/labels], out: {0}/trained}}
  sweep: {{file: {0}/sweep.yaml, out: {0}/swept}}
  evaluate: {{benchmark: folder, data: {0}/labelled, index: {0}/index, out: {0}/evaluated}}
"""
STAGES = ["embed", "index", "references", "segment", "label", "train", "sweep", "evaluate"]
# A GPU that only the scheduler believes in: workers take shares of it and compute on the CPU.
SETTINGS = """
models: {device: cpu}
embed: {shard_size: 1}
references: {exemplars: 2, image_size: 96}
segment: {image_size: 96}
train: {steps: 2, checkpoint_every: 2, batch_size: 2, image_size: 96, crop: 96}
placement:
  embed: {workers: 1, cpus_per_worker: 0.5, worker_resources: {model: 0.5}, reader_resources: {decode: 1}}
"""
SWEEP = """
settings: settings.yaml
index: index
benchmark: folder
data: labelled
set: {references.image_size: 64, segment.image_size: 64}
vary: {references.exemplars: [2, 3]}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Rehearsal]:
    with rehearsal(*NODES) as started:
        yield started


def ray(
    cluster: Rehearsal, *words: str, token: bool = True, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`ray job ...`, as somebody at another machine gives it."""
    command, *rest = words
    hidden = () if token else ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    return subprocess.run(
        [str(BIN / "ray"), "job", command, "--address", cluster.dashboard, *rest],
        cwd=folder,
        env={n: v for n, v in cluster.environment.items() if n not in hidden},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )


def submit(
    cluster: Rehearsal, *words: str, options: tuple[str, ...] = (), folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return ray(cluster, "submit", *options, "--working-dir", ".", "--", *words, folder=folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with everything that reco-ray needs, and no reco-ray: as in an image that has only the dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # Of a folder that is added by such a file, the files of this kind are not read: one of them is our installation.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = str(folder / "bin" / "python")
    look = "from importlib.util import find_spec as f; print(f('ray') is not None, f('reco_ray') is not None)"
    found = subprocess.run([python, "-Ec", look], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]
    return python


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline over a dozen photographs, four to segment and learn from, two with labels."""
    folder = tmp_path_factory.mktemp("project")
    write_photographs(folder / "corpus", 12)
    write_photographs(folder / "images", 4)
    (folder / "labelled" / "labels").mkdir(parents=True)
    for file in write_photographs(folder / "labelled" / "images", 2):
        ids = np.zeros(Image.open(file).size[::-1], np.uint8)
        ids[: len(ids) // 2] = 1
        Image.fromarray(ids).save(folder / "labelled" / "labels" / f"{file.stem}.png")
    (folder / "labelled" / "classes.txt").write_text("dog\nsky\n")
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "pipeline.yaml").write_text(PIPELINE.format(folder))
    return folder


def job_of(project: Path, python: str = "python") -> list[str]:
    return [python, "jobs/pipeline.py", f"{project}/pipeline.yaml", "--out", f"{project}/summary.json"]


def summary_of(project: Path) -> tuple[str, list[tuple[str, str]]]:
    content = json.loads((project / "summary.json").read_text())
    return content["state"], [(step["stage"], step["state"]) for step in content["steps"]]


def test_a_job_has_the_code_of_its_working_directory_and_no_more(cluster: Rehearsal) -> None:
    look = "import os, reco_ray; print('code:', reco_ray.__file__); print('files:', *sorted(os.listdir()))"
    done = submit(cluster, "python", "-c", look)
    assert done.returncode == 0, done.stdout
    code, files = re.findall(r"^(?:code|files): (.*)$", done.stdout, re.MULTILINE)
    assert "/working_dir_files/" in code  # and not the reco-ray that is installed
    assert {"jobs", "reco_ray", "serve", "cluster", "pyproject.toml"} <= set(files.split())
    assert {"README.md"} == {name for name in files.split() if name.endswith(".md")}
    assert not {"docs", "tests", "benchmarks", ".git"} & set(files.split())


def test_without_the_token_nothing_is_taken(cluster: Rehearsal) -> None:
    refused = ray(cluster, "list", token=False)
    assert refused.returncode != 0
    assert "401" in refused.stdout or "token" in refused.stdout.lower()


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_pipeline_is_stopped_goes_on_without_an_installation_and_then_has_nothing_to_do(
    cluster: Rehearsal, project: Path, bare: str
) -> None:
    done = submit(cluster, *job_of(project), options=("--no-wait", "--submission-id", "first"))
    assert done.returncode == 0, done.stdout
    parts = project / "embeddings" / "embeddings"
    wait_until(lambda: any(parts.glob("*.parquet")), "nothing was committed")
    stopped = ray(cluster, "stop", "first")
    assert "was stopped" in stopped.stdout, stopped.stdout
    state, steps = summary_of(project)
    assert (state, steps[-1][1]) == ("stopped", "stopped")
    assert "Traceback" not in ray(cluster, "logs", "first").stdout
    wait_until(lambda: not workers_of(cluster), "the stopped job's workers still run")
    committed = {part: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}
    assert committed

    without = ("--runtime-env-json", json.dumps({"py_executable": bare}))
    done = submit(cluster, *job_of(project, bare), options=without)
    assert done.returncode == 0, done.stdout
    assert summary_of(project) == ("done", [(stage, "done") for stage in STAGES])
    assert {part: part.stat().st_mtime_ns for part in committed} == committed
    embeddings = read_manifest(str(project / "embeddings"), EmbeddingsContent)
    assert embeddings.counts["embedded"] == 12
    assert "placement" not in embeddings.model_dump_json()
    assert len(list((project / "masks" / "masks").glob("*.png"))) == 4
    assert (
        read_manifest(str(project / "trained" / "pets" / "segmenter"), SegmenterContent).counts["steps"] == 2
    )
    assert read_manifest(str(project / "swept"), SweepContent).counts["finished"] == 2
    assert json.loads((project / "evaluated" / "results.json").read_text())["images"] == 2

    done = submit(cluster, *job_of(project))
    assert done.returncode == 0, done.stdout
    # An evaluation is measured again: its references are there.
    assert done.stdout.count("nothing to do, made before") == len(STAGES) - 1
    assert read_manifest(str(project / "embeddings"), EmbeddingsContent) == embeddings


def workers_of(cluster: Rehearsal) -> list[str]:
    """Processes that compute or read for a stage: Ray calls them by what they do."""
    return [t for t in map(title, descendants(cluster.pid)) if "MapBatches(" in t]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("stages: {index: {embeddings: DIR/nothing, out: DIR/index}}", 1, "is not there"),
        ("stages: {index: {embedings: DIR/nothing, out: DIR/index}}", 2, "there is no such option"),
    ],
)
def test_a_job_that_fails_says_why_in_one_line(
    cluster: Rehearsal, tmp_path: Path, text: str, code: int, says: str
) -> None:
    (tmp_path / "pipeline.yaml").write_text(text.replace("DIR", str(tmp_path)))
    done = submit(cluster, *job_of(tmp_path))
    assert done.returncode == 1  # Ray's own, for any job that failed
    assert f"exit code {code}" in done.stdout
    assert re.search(rf"^error: .*{says}", done.stdout, re.MULTILINE), done.stdout
    assert "Traceback" not in done.stdout
    if code == 1:
        assert summary_of(tmp_path) == ("failed", [("index", "failed")])
        assert says in (tmp_path / "summary.json").read_text()


@pytest.mark.parametrize("node", ["CPU", "CPU=many", "CPU=1,,GPU=1", "CPU=-1"])
def test_a_node_that_cannot_be_is_refused(node: str) -> None:
    words = [sys.executable, "cluster/local.py", "--node", node]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected resources such as" in done.stderr


# --- one stage a job, in their order: each needs what those before it have made ---------------------------------------


@pytest.mark.chaos
@pytest.mark.parametrize("stage", [*STAGES, "export", "search", "run"])
def test_a_stage_is_a_job(cluster: Rehearsal, project: Path, stage: str) -> None:
    """Chaos only for the time it takes."""
    steps = {step.stage: step.words[1:] for step in read_pipeline(f"{project}/pipeline.yaml")}
    steps["export"] = [f"{project}/trained/pets/segmenter", f"--out={project}/onnx"]
    steps["search"] = [f"--index={project}/index", "a dog", f"--out={project}/sheets", "--k=2"]
    shared = [f"--settings={project}/settings.yaml", f"--out={project}/all", "--concepts=dog,sky"]
    steps["run"] = [f"--corpus={project}/corpus", f"--images={project}/images", *shared]
    done = submit(cluster, "python", f"jobs/{stage}.py", *steps[stage])
    assert done.returncode == 0, done.stdout
    last = {"references": "reference", "evaluate": "results", "search": "sheet", "run": "report"}
    assert re.search(rf"^{last.get(stage, stage)}  ", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.chaos
def test_a_working_directory_that_is_too_large_is_refused(cluster: Rehearsal, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(os.urandom(110 * 2**20))
    done = submit(cluster, "true", folder=tmp_path)
    assert done.returncode != 0
    assert "Maximum request body size 104857600 exceeded" in done.stdout, done.stdout
    (tmp_path / ".rayignore").write_text("large.bin\n")
    done = submit(cluster, "true", folder=tmp_path)
    assert done.returncode == 0, done.stdout
