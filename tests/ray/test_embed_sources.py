"""The embed stage over every kind of source: tars, web lists, S3, Google's storage, the hub; and what is new since."""

import json
import os
import re
import shutil
import tarfile
import time
from collections import defaultdict
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from artifacts import embeddings, files, rows
from clusters import local_ray
from images import encoded, photograph, write_photographs
from stores import RESET, SHORT, google_store, hub, s3_store, serving

from reco_ray.config import load_settings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus import web
from reco_ray.corpus.generations import embedding_files
from reco_ray.corpus.read import read_image_bytes
from reco_ray.corpus.stage import embed_corpus
from reco_ray.distributed import streaming, worker_messages
from reco_ray.distributed.parts import Report, Worker, run_parts
from reco_ray.distributed.workers import Workers
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, slow_requests, storage
from reco_ray.files.retries import retried

OVERRIDES = ["embed.shard_size=4", "embed.batch_size=4"]


@pytest.fixture(scope="module")
def s3():
    with s3_store("corpus") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def dataset(photographs):
    with hub(
        "someone/photos", {f"train/{file.name}": file.read_bytes() for file in photographs.iterdir()}
    ) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _ray(s3, dataset):
    """Its workers inherit where the stores are; metrics are reported at once, not every ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "500")
        with google_store("corpus"), local_ray(1):
            yield


@pytest.fixture(scope="module")
def settings():
    return load_settings("mini", overrides=OVERRIDES)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, 10)
    return folder


@pytest.fixture(scope="module")
def expected(photographs, settings, tmp_path_factory) -> Path:
    """The photographs embedded from a folder; two of the tests read what it holds."""
    out = tmp_path_factory.mktemp("expected") / "out"
    embed_corpus(str(photographs), str(out), settings)
    return out


def counts(images: int, rejected: int = 0, duplicates: int = 0) -> dict[str, int]:
    embedded = images - rejected - duplicates
    return {"images": images, "embedded": embedded, "rejected": rejected, "duplicates": duplicates}


@pytest.mark.usefixtures("in_process")
def test_a_folder_of_tars(photographs, expected, settings, tmp_path):
    """Parts of four; a photograph in two tars; a tar that breaks off."""
    names = sorted(photographs.iterdir())
    (tmp_path / "tars").mkdir()
    for number, chosen in enumerate([names[:6], names[5:], names[:2]]):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for file in chosen:
                tar.add(file, file.name)
    cut = tmp_path / "tars" / "2.tar"
    cut.write_bytes(cut.read_bytes()[: names[0].stat().st_size + 2400])
    out = tmp_path / "out"
    manifest = embed_corpus(str(tmp_path / "tars"), str(out), settings).manifest
    assert manifest.counts == counts(13, rejected=1, duplicates=2)
    assert embeddings(out).keys() == embeddings(expected).keys()
    for row in rows(out, "embeddings"):
        member = row["uri"].partition("#")[2].rpartition("@")[0]
        assert read_image_bytes(row["uri"]) == (photographs / member).read_bytes()
    (rejected,) = rows(out, "rejected")
    assert rejected["uri"] == str(cut)
    assert rejected["reason"].startswith("cannot be read: damaged tar: ")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"] == manifest.counts
    assert summary["rejected_by_reason"] == {"cannot be read": 1}
    assert summary["this_run"]["images"] == 13
    # A part in the middle of a tar is lost: it alone is made again.
    (out / "manifest.json").unlink()
    lost = next(file for file in out.glob("embeddings/*-00000.parquet"))
    before = files(out)
    lost.unlink()
    assert embed_corpus(str(tmp_path / "tars"), str(out), settings).manifest.counts == manifest.counts
    after = files(out)
    changed = {name for name in before if after[name] != before[name]}
    assert str(lost.relative_to(out)) in changed
    assert not any(name.startswith("embeddings/") for name in changed - {str(lost.relative_to(out))})
    assert after[str(lost.relative_to(out))][0] == before[str(lost.relative_to(out))][0]


@pytest.mark.usefixtures("in_process")
def test_what_is_new_is_followed(photographs, settings, tmp_path):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(photographs, corpus)
    first = embed_corpus(str(corpus), str(out), settings, follow=True).manifest
    assert (first.counts, first.content.generation) == (counts(10), 1)
    before = files(out)
    again = embed_corpus(str(corpus), str(out), settings, follow=True)
    assert (again.manifest, again.new) == (first, False)
    assert files(out) == before

    (corpus / "new.jpg").write_bytes(encoded(photograph(20)))
    (corpus / "copy.jpg").write_bytes((photographs / "003.jpg").read_bytes())
    (corpus / "009.jpg").unlink()
    with pytest.raises(RecoError, match=r"has changed since \(2 new, 1 gone\): --follow embeds what is new"):
        embed_corpus(str(corpus), str(out), settings)
    assert files(out) == before
    outcome = embed_corpus(str(corpus), str(out), settings, follow=True)
    second, new = outcome.manifest, outcome.new
    assert new
    assert (second.counts, second.content.generation) == (counts(12, duplicates=1), 2)
    after = files(out)
    old = {name for name in before if name.startswith(("embeddings/", "duplicates/", "listing/"))}
    assert {name: after[name] for name in old} == {name: before[name] for name in old}
    (duplicate,) = rows(out, "duplicates")
    assert duplicate == {"uri": str(corpus / "copy.jpg"), "duplicate_of": str(corpus / "003.jpg")}
    assert len(embedding_files(str(out), second.content)) == len(embedding_files(str(out), first.content)) + 1
    again = embed_corpus(str(corpus), str(out), settings)
    assert (again.manifest, again.new) == (second, False)


@pytest.mark.usefixtures("in_process")
def test_a_list_of_addresses(photographs, expected, settings, tmp_path):
    def answer(method, path, headers, body):
        file = photographs / path[1:]
        return (200, {}, file.read_bytes()) if file.exists() else (404, {}, b"")

    with serving(answer) as server:
        server.fault = lambda method, path, before: (
            [503, SHORT, None][min(before, 2)] if "3" in path else None
        )
        names = [*sorted(file.name for file in photographs.iterdir()), "missing.jpg"]
        (tmp_path / "urls.txt").write_text("\n".join(f"{server.url}/{name}" for name in names))
        manifest = embed_corpus(str(tmp_path / "urls.txt"), str(tmp_path / "out"), settings).manifest
        assert server.asked["GET", "/missing.jpg"] == 1
    assert manifest.counts == counts(11, rejected=1)
    assert [row["reason"] for row in rows(tmp_path / "out", "rejected")] == [
        "cannot be read: HTTP status 404"
    ]
    assert embeddings(tmp_path / "out").keys() == embeddings(expected).keys()


def test_hosts_of_a_list_have_a_limit_each(photographs, settings, tmp_path, monkeypatch):
    """Whatever the list begins with, and over all loaders: two of them have room here."""
    monkeypatch.setattr(web, "PER_HOST_LIMIT", 1)
    names = sorted(file.name for file in photographs.iterdir())
    with serving(
        lambda method, path, headers, body: (200, {}, (photographs / path[1:]).read_bytes())
    ) as server:
        server.seconds = 0.02
        hosts = [server.url, server.url.replace("127.0.0.1", "localhost")]
        lines = [str(photographs / "000.jpg"), *(f"{host}/{name}" for name in names for host in hosts)]
        (tmp_path / "urls.txt").write_text("\n".join(lines))
        manifest = embed_corpus(str(tmp_path / "urls.txt"), str(tmp_path / "out"), settings).manifest
        assert server.by_host == {"127.0.0.1": 1, "localhost": 1}
    assert manifest.counts == counts(21, duplicates=11)


# --- what is seen -------------------------------------------------------------------------------------------


def scraped() -> dict[str, float]:
    """What Prometheus would find: "name{stage=...,...}" without the labels that Ray adds -> sum."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found = defaultdict[str, float](float)
    with urlopen(url, timeout=10) as page:
        for line in page.read().decode().splitlines():
            if parts := re.fullmatch(r"(ray_\w+)\{(.*)\} (\S+)", line):
                labels = re.findall(r'\b(stage|outcome|reason)="([^"]*)"', parts[2])
                found[" ".join([parts[1], *(value for _, value in sorted(labels))])] += float(parts[3])
    return found


def test_prometheus_finds_counts_rates_and_queues(photographs, settings, tmp_path):
    """Under the names that docs/scale.md and the dashboard give them."""
    corpus = tmp_path / "corpus"
    shutil.copytree(photographs, corpus)
    (corpus / "copy.jpg").write_bytes((photographs / "003.jpg").read_bytes())
    (corpus / "empty.jpg").write_bytes(b"")
    embed_corpus(str(corpus), str(tmp_path / "out"), settings)
    wanted = {
        "ray_reco_images_total done embed": 10,
        "ray_reco_images_total duplicate embed": 1,
        "ray_reco_images_total rejected embed": 1,
        "ray_reco_rejected_images_total empty file embed": 1,
        "ray_reco_images_per_second embed": 0.01,
        "ray_data_num_external_inqueue_blocks": 0,
    }
    deadline = time.monotonic() + 60
    while any((found := scraped()).get(name, -1) < least for name, least in wanted.items()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found["ray_reco_rejected_images_total empty file embed"] == 1


# --- stores -------------------------------------------------------------------------------------------------


def test_corpus_and_output_in_google_storage(photographs, expected, settings, tmp_path):
    """A tar and a table; the rows go there too."""
    names = sorted(photographs.iterdir())
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for file in names[:5]:
            tar.add(file, file.name)
    pq.write_table(pa.table({"bytes": [file.read_bytes() for file in names[5:]]}), tmp_path / "1.parquet")
    for name in ("0.tar", "1.parquet"):
        storage.write_bytes(f"gs://corpus/inside/{name}", (tmp_path / name).read_bytes())
    manifest = embed_corpus("gs://corpus/inside", "gs://corpus/out", settings).manifest
    assert manifest.counts == counts(10)
    stored = storage.read_table("gs://corpus/out/embeddings").to_pylist()
    assert {row["image_id"] for row in stored} == embeddings(expected).keys()
    assert {read_image_bytes(row["uri"]) for row in stored} == {file.read_bytes() for file in names}
    again = embed_corpus("gs://corpus/inside", "gs://corpus/out", settings)
    assert (again.manifest, again.new) == (manifest, False)


@pytest.mark.usefixtures("in_process")
def test_a_corpus_at_the_hub(dataset, expected, settings, tmp_path):
    corpus = "hf://datasets/someone/photos/train"
    manifest = embed_corpus(corpus, str(tmp_path / "out"), settings).manifest
    assert manifest.counts == counts(10)
    assert embeddings(tmp_path / "out").keys() == embeddings(expected).keys()
    assert all(row["uri"].startswith(f"{corpus}/") for row in rows(tmp_path / "out", "embeddings"))


# --- S3 -----------------------------------------------------------------------------------------------------


def put(folder: Path, uri: str) -> None:
    for file in sorted(folder.iterdir()):
        storage.write_bytes(f"{uri}/{file.name}", file.read_bytes())


@pytest.mark.chaos
def test_corpus_and_output_in_s3_with_faults(s3, photographs, expected, settings):
    """Every object is refused twice, each time otherwise, read and written."""
    put(photographs, "s3://corpus/photographs")
    faults = [500, RESET, None]
    s3.fault = lambda method, path, before: faults[before] if before < 2 else None
    s3.seconds = 0.01
    try:
        manifest = embed_corpus("s3://corpus/photographs", "s3://corpus/out", settings).manifest
        refused = sum(
            1 for (method, path), asked in s3.asked.items() if "/photographs/" in path and asked > 1
        )
    finally:
        s3.fault, s3.seconds = (lambda method, path, before: None), 0
    assert refused
    assert manifest.counts == counts(10)
    stored = storage.read_table("s3://corpus/out/embeddings").to_pylist()
    assert {row["image_id"] for row in stored} == embeddings(expected).keys()
    assert {row["uri"] for row in stored} == {f"s3://corpus/photographs/{n:03d}.jpg" for n in range(10)}
    assert artifacts.read_manifest("s3://corpus/out", EmbeddingsContent) == manifest


@pytest.mark.chaos
def test_a_store_that_stops_answering_stops_the_run_and_it_goes_on(s3, photographs, expected, settings):
    put(photographs, "s3://corpus/again")
    down = sorted(photographs.iterdir())[-1].name
    listed = f"/corpus/again/{down}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECO_RETRY_SECONDS", "20")
        s3.fault = lambda method, path, before: 503 if path.startswith(listed) and method == "GET" else None
        try:
            with pytest.raises(RecoError, match=r"again/.*: the store does not answer: .*goes on later"):
                embed_corpus("s3://corpus/again", "s3://corpus/again-out", settings)
        finally:
            s3.fault = lambda method, path, before: None
    committed = storage.list_names("s3://corpus/again-out/embeddings", ".parquet")
    assert len(committed) < 3
    assert not storage.exists("s3://corpus/again-out/manifest.json")
    manifest = embed_corpus("s3://corpus/again", "s3://corpus/again-out", settings).manifest
    assert manifest.counts == counts(10)


@pytest.mark.usefixtures("in_process")
def test_stores_that_refuse_are_named(s3, photographs, settings, tmp_path):
    with pytest.raises(RecoError, match=r"s3://nowhere/x: no such file or folder"):
        embed_corpus("s3://nowhere/x", str(tmp_path / "out"), settings)
    s3.fault = lambda method, path, before: 403
    try:
        with pytest.raises(
            RecoError, match=r"s3://corpus/photographs: cannot be (listed|read): .*ACCESS_DENIED"
        ):
            embed_corpus("s3://corpus/photographs", str(tmp_path / "out"), settings)
    finally:
        s3.fault = lambda method, path, before: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("RECO_RETRY_SECONDS", "0.5")
        with pytest.raises(RecoError, match=r"s3://corpus/photographs: the store does not answer"):
            embed_corpus("s3://corpus/photographs", str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_a_corpus_that_changes_while_it_is_read(photographs, settings, tmp_path):
    """What is gone or rewritten is rejected; what came is for `--follow`."""
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    data = [file.read_bytes() for file in sorted(photographs.iterdir())]
    pq.write_table(pa.table({"bytes": data[:5]}), corpus / "a.parquet")
    pq.write_table(pa.table({"bytes": data[5:]}), corpus / "b.parquet")
    embed_corpus(str(corpus), str(out), settings)
    # As if it had been killed before its last part, and the table rewritten before the next run.
    (out / "manifest.json").unlink()
    (last,) = out.glob("embeddings/00000001-*-last.parquet")
    (changed,) = {row["uri"].partition("#")[0] for row in storage.read_table(str(last)).to_pylist()}
    last.unlink()
    before = files(out)
    pq.write_table(pa.table({"bytes": data[:1]}), changed)
    manifest = embed_corpus(str(corpus), str(out), settings).manifest
    assert manifest.counts == counts(10, rejected=1)
    (rejected,) = rows(out, "rejected")
    assert rejected["uri"] == changed
    assert rejected["reason"].startswith("cannot be read: changed since it was listed")
    parts = [name for name in before if name.startswith("embeddings/")]
    assert {name: files(out)[name] for name in parts} == {name: before[name] for name in parts}


@pytest.mark.usefixtures("in_process")
def test_too_many_rejected_images_stop_the_run(photographs, tmp_path):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(photographs, corpus)
    for number in range(3):
        (corpus / f"text {number}.jpg").write_text("no image")
    strict = load_settings("mini", overrides=[*OVERRIDES, "embed.max_rejected=10%"])
    with pytest.raises(
        RecoError,
        match=r"of 13 images were rejected \(.* not an image.*more than the setting embed\.max_rejected=10%",
    ):
        embed_corpus(str(corpus), str(out), strict)
    assert not (out / "manifest.json").exists()
    loose = load_settings("mini", overrides=[*OVERRIDES, "embed.max_rejected=3"])
    assert embed_corpus(str(corpus), str(out), loose).manifest.counts == counts(13, rejected=3)


@pytest.mark.usefixtures("in_process")
def test_a_full_disk(photographs, settings, tmp_path):
    """What is committed stays; with room again the run goes on."""
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", small]).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        (small / "filler").write_bytes(bytes(64 * 1024))
        with pytest.raises(RecoError, match=r": cannot be written: No space left on device"):
            embed_corpus(str(photographs), str(small / "out"), settings)
        assert not (small / "out" / "manifest.json").exists()
        (small / "filler").unlink()
        manifest = embed_corpus(str(photographs), str(small / "out"), settings).manifest
        assert manifest.counts == counts(10)
        assert len(rows(small / "out", "embeddings")) == 10
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # this process keeps the listing open


def test_what_a_worker_waits_for_is_said_on_the_terminal(tmp_path, monkeypatch, recwarn):
    """And a pool that is larger than its units says nothing, as Ray would."""
    printed = tmp_path / "printed"
    monkeypatch.setattr(streaming, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(worker_messages.console, "print", printed.write_text)

    def load(unit):
        slow_requests.SILENCE = 0.1
        os.environ["RECO_RETRY_SECONDS"] = "200"  # this one ends when the line is printed

        def ask():
            if not printed.exists():
                raise ConnectionRefusedError("connection refused")
            return unit

        yield "part", retried(ask, "s3://a-store/a.jpg")

    class Count(Worker[Report]):
        report = Report

        def set_up(self, device):
            pass

        def work(self, name, rows):
            return Report(rows.num_rows)

    workers = Workers(count=2, cpus=0.1, gpus=0.0, threads=1, device="cpu")
    found = run_parts([pa.table({"a": [1, 2]})], load, Count(), workers, loaders=2)
    assert list(found) == [Report(2)]
    line = r"waiting    s3://a-store/a\.jpg has not answered .*connection refused.*RECO_RETRY_SECONDS\) \(node .*\)"
    assert re.fullmatch(line, printed.read_text())
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
