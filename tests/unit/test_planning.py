"""Plans: nodes, the arithmetic from rates to hours, what an index of a billion takes, and lines for what is wrong."""

import json
from pathlib import Path

import pytest
import yaml
from documents import ROOT
from training_data import write_segmenter

from reco_ray.cli import main
from reco_ray.config import load_settings
from reco_ray.contents import FramesContent, MasksContent
from reco_ray.distributed.timing import Meter, decisive_settings, write_summary
from reco_ray.distributed.workers import Workers, count_readers, total_resources
from reco_ray.errors import RecoError, UsageError
from reco_ray.files import artifacts, storage
from reco_ray.pipeline import read_pipeline
from reco_ray.planning.estimate import estimate
from reco_ray.planning.estimate_table import as_table
from reco_ray.planning.measured_rates import measure
from reco_ray.planning.nodes import Nodes, list_nodes, parse_nodes, place
from reco_ray.planning.rate_file import ITEMS, Rate, as_yaml, read_rates
from reco_ray.planning.workload import Workload, workloads

CPUS = [Nodes(4, {"CPU": 8.0})]
ZERO_SHOT = MasksContent(labels=[], palette=[], references="")
MIXED = [Nodes(2, {"CPU": 16.0, "GPU": 1.0, "model": 1.0}), Nodes(3, {"CPU": 8.0, "decode": 32.0})]


def rate(stage: str, settings=None, **values: object) -> Rate:
    """One second of a core an item and nothing else, unless said otherwise."""
    wanted = settings if stage == "index" else decisive_settings(stage, settings or load_settings())
    fields = {"stage": stage, "device": "cpu", "settings": wanted, "compute_seconds": 1.0, "source": "a test"}
    return Rate.model_validate(fields | values)


# --- nodes --------------------------------------------------------------------------------------------------


def test_nodes_are_read_and_added_up() -> None:
    nodes = [parse_nodes("4xCPU=8"), parse_nodes(" 8 x CPU=16, GPU=1,l4=0.5 "), parse_nodes("CPU=2")]
    assert [node.count for node in nodes] == [4, 8, 1]
    assert total_resources(list_nodes(nodes)) == {"CPU": 162.0, "GPU": 8.0, "l4": 4.0}


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "0xCPU=1", "4xCPU", "4xCPU=", "4xCPU=a", "CPU=1,,GPU=1", "-1xCPU=2"]
)
def test_nodes_of_another_form_are_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"--nodes .*such as 4xCPU=8,GPU=1"):
        parse_nodes(text)


def test_no_worker_and_no_reader_spans_two_nodes() -> None:
    assert place([Nodes(8, {"GPU": 1.0})], {"GPU": 2.0}, 4)[0] == 0
    count, free = place(MIXED, {"CPU": 1.0, "GPU": 0.5, "model": 0.5}, 3)
    assert (count, free) == (3, [{"CPU": 29.0, "GPU": 0.5, "model": 0.5}, {"CPU": 24.0, "decode": 96.0}])
    readers = Workers(3, 1.0, 0.5, 1, "cuda", reader_resources={"decode": 1.0})
    assert count_readers(readers, free) == 96
    assert count_readers(Workers(3, 1.0, 0.5, 1, "cuda"), free) == 4 * (29 + 24)


# --- arithmetic ---------------------------------------------------------------------------------------------


def test_hours_follow_from_work_reading_and_what_is_fixed() -> None:
    known = rate("embed", reader_seconds=0.5, fixed_seconds=60, bytes_per_item=1000)
    found = estimate(Workload("embed", "embed", load_settings()), [known], CPUS, 1_000_000)
    # 32 CPUs: 8 workers of 4 threads, which leave 8 CPUs, 32 readers.
    assert (found.items, found.workers, found.bottleneck) == (1_000_000, 8, "workers")
    assert found.hours == pytest.approx((60 + 1_000_000 / 32) / 3600)
    assert (found.gpu_hours, found.gigabytes) == (0.0, 1.0)
    slow = known.model_copy(update={"reader_seconds": 2.0})
    found = estimate(Workload("embed", "embed", load_settings()), [slow], CPUS, 1_000_000)
    assert (found.hours, found.bottleneck) == (pytest.approx((60 + 2_000_000 / 32) / 3600), "readers")
    found = estimate(Workload("embed", "embed", load_settings()), [known], CPUS, 100)
    assert (found.workers, found.bottleneck) == (1, "fixed")  # there is one part only


def test_gpus_that_are_shared_do_the_work_of_one_and_readers_need_processors() -> None:
    settings = load_settings(overrides=["placement.embed.gpus_per_worker=0.5"])
    known = rate("embed", settings, device="cuda", compute_seconds=0.01, reader_cpu_seconds=0.1)
    found = estimate(Workload("embed", "embed", settings), [known], MIXED, 1_000_000)
    assert found.workers == 4
    # 56 CPUs less 4 for the workers decode 520 images a second, two GPUs embed 200.
    assert (found.hours, found.bottleneck) == (pytest.approx(5000 / 3600), "workers")
    assert found.gpu_hours == pytest.approx(2 * 5000 / 3600)
    slow = known.model_copy(update={"reader_cpu_seconds": 0.52})
    found = estimate(Workload("embed", "embed", settings), [slow], MIXED, 1_000_000)
    assert (found.hours, found.bottleneck) == (pytest.approx(10_000 / 3600), "readers")


def test_references_are_counted_in_concepts_whatever_the_images() -> None:
    asked = Workload("references", "references", load_settings(), concepts=7, context=5)
    found = estimate(asked, [rate("references")], [Nodes(1, {"CPU": 2.0})], 10**9)
    assert (found.items, found.workers) == (7, 2)
    assert found.hours == pytest.approx((5 + 2 / 2) / 3600)  # five one after another, two side by side


def test_segmenters_take_steps_and_rounds() -> None:
    settings = load_settings(overrides=["train.steps=100"])
    known = rate("train", settings, threads=2, fixed_seconds=20, fixed_bytes=2e9)
    asked = Workload("train", "train", settings, sets=5)
    found = estimate(asked, [known], [Nodes(1, {"CPU": 4.0})], 10**9)
    # Four of one thread side by side, then the fifth.
    assert (found.items, found.workers) == (500, 4)
    assert found.hours == pytest.approx(2 * (20 + 100) / 3600)
    assert found.gigabytes == 10.0
    # Alone it has four threads, but only two were measured.
    alone = estimate(Workload("train", "train", settings), [known], [Nodes(1, {"CPU": 4.0})], 1)
    assert alone.hours == pytest.approx((20 + 50) / 3600)


def test_an_index_takes_the_bytes_of_the_kind_that_is_chosen() -> None:
    work = Workload("index", "index", load_settings())
    known = [
        rate("embed", dim=384),
        rate("index", settings={"index.kind": "Flat", "dim": 384}, bytes_per_item=100, fixed_seconds=1),
        rate(
            "index",
            settings={"index.kind": "IVF_HNSW32,SQ8", "dim": 384},
            compute_seconds=1e-4,
            training_core_seconds=16,
            bytes_per_item=90,
        ),
    ]
    small, middle, large = (estimate(work, known, CPUS, n) for n in (100_000, 100_000_000, 10**9))
    assert small.gigabytes == pytest.approx(100_000 * (4 * 384 + 8 + 100) / 1e9)
    assert small.workers == 1
    centroids = 32_768
    expected = 100_000_000 * (384 + 8 + 100) + centroids * (4 * 384 + 256)
    assert middle.gigabytes == pytest.approx(expected / 1e9)
    # 64 shards on 32 CPUs; k-means on the 8 of one node.
    teraflops = 2 * 10 * 64 * centroids * centroids * 384 / 1e12
    assert middle.hours == pytest.approx((teraflops * 16 / 8 + 1e8 * 1e-4 / 32) / 3600)
    assert large.hours is None
    assert "RR384,IVF_HNSW32,RaBitQ2" in large.bottleneck
    # Not ten times the middle.
    assert large.gigabytes == pytest.approx(1e9 * (96 + 20 + 8 + 100) / 1e9, rel=0.01)


# --- what is missing ----------------------------------------------------------------------------------------


def test_what_has_no_rate_says_why() -> None:
    work = Workload("segment", "segment", load_settings(overrides=["segment.refine=crf"]))
    assert estimate(work, [], CPUS, 10).bottleneck == "no rate of segment"
    other = estimate(work, [rate("segment")], CPUS, 10)
    assert other.bottleneck == "no rate with segment.refine=crf (measured: superpixels)"
    assert other.gigabytes is None
    plain = Workload("segment", "segment", load_settings())
    on_gpus = estimate(plain, [rate("segment", bytes_per_item=1e9)], MIXED, 10)
    assert on_gpus.bottleneck == "no rate on cuda, only on cpu"
    assert (on_gpus.hours, on_gpus.gpu_hours, on_gpus.gigabytes) == (None, None, 10.0)
    assert (
        estimate(Workload("evaluate", "evaluate", load_settings()), [], CPUS, 10).bottleneck
        == "no rates of evaluate"
    )
    table = as_table(10, [on_gpus, estimate(plain, [rate("segment")], CPUS, 3600)])
    assert table.splitlines()[-1].split() == ["total", ">0.0312", ">0", "10.0", "without", "segment"]


def test_workers_that_fit_nowhere_are_an_error_and_fewer_are_said() -> None:
    def embed(*placement: str, nodes=MIXED):
        overrides = [f"placement.embed.{each}" for each in placement]
        return estimate(Workload("embed", "embed", load_settings(overrides=overrides)), [], nodes, 10**6)

    with pytest.raises(RecoError, match=r"stage embed: .*'tpu', which no node has"):
        embed("worker_resources={tpu: 1}")
    with pytest.raises(RecoError, match=r"stage embed: no node has room for a worker, .*CPU=1, GPU=2"):
        embed("workers=1", "gpus_per_worker=2")
    with pytest.raises(RecoError, match=r"stage embed: no node has room for a reader, .*CPU=0.25, disk=1"):
        embed("workers=1", "gpus_per_worker=1", "reader_resources={disk: 1}")
    with pytest.raises(RecoError, match="has no GPU"):
        estimate(Workload("embed", "embed", load_settings(overrides=["models.device=cuda"])), [], CPUS, 1)
    known = rate("embed", device="cuda")
    settings = load_settings(overrides=["placement.embed.workers=5", "placement.embed.gpus_per_worker=1"])
    found = estimate(Workload("embed", "embed", settings), [known], MIXED, 10**6)
    assert found.bottleneck == "workers; 2 of 5 workers fit"


# --- rates --------------------------------------------------------------------------------------------------


def finished_masks(
    folder: Path,
    images: int,
    *,
    run: int | None = None,
    work: float = 1.0,
    stage: str = "segment",
    content: MasksContent = ZERO_SHOT,
) -> str:
    """A masks artifact whose run of two workers took `work` seconds an image."""
    writer = artifacts.ArtifactWriter(str(folder), MasksContent, {"made": "by a test"})
    writer.finished()
    storage.write_bytes(str(folder / "masks" / "a.png"), bytes(1000 * images))
    meter = Meter()
    meter.add(3.0, 2.0, work * images)
    made = meter.run(Workers(2, 0.75, 0.0, 1, "cpu"), readers=2) | {"seconds": work * images / 2 + 7}
    counts = {"images": images}
    write_summary(
        writer.uri, stage, counts, {"images": images if run is None else run, **made}, load_settings()
    )
    writer.commit(counts, content)
    return str(folder)


def test_a_rate_is_told_by_artifacts_and_read_again(tmp_path: Path) -> None:
    artifacts = [finished_masks(tmp_path / "a", 10), finished_masks(tmp_path / "b", 30)]
    found = measure(artifacts, "a laptop")
    assert len(found) == 1
    assert (found[0].stage, found[0].preset, found[0].device) == ("segment", "mini", "cpu")
    assert (found[0].compute_seconds, found[0].reader_seconds, found[0].fixed_seconds) == (1.0, 0.15, 7.0)
    assert found[0].bytes_per_item == pytest.approx(1000, rel=0.2)  # and the summaries themselves
    assert "10 images in 1 part, 12.0 s by 2 workers of 1 thread" in found[0].source
    assert found[0].settings["segment.refine"] == "superpixels"
    (tmp_path / "rates.yaml").write_text(as_yaml(found))
    assert read_rates(str(tmp_path / "rates.yaml")) == found


def test_masks_of_a_segmenter_tell_a_rate_of_its_network(tmp_path: Path) -> None:
    trained = MasksContent(labels=[], palette=[], segmenter="s")
    made = [
        finished_masks(tmp_path / "zero-shot", 10),
        finished_masks(tmp_path / "trained", 10, stage="segment-trained", content=trained),
    ]
    found = measure(made)
    assert [each.stage for each in found] == ["segment", "segment-trained"]
    assert found[1].settings["train.segmenter"] == load_settings().train.segmenter
    assert "models.encoder" not in found[1].settings


def test_what_tells_no_rate_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecoError, match="its last run only finished an interrupted one"):
        measure([finished_masks(tmp_path / "resumed", 10, run=0)])
    (Path(finished_masks(tmp_path / "old", 10)) / "summary.json").unlink()
    with pytest.raises(RecoError, match=r"has no summary\.json with the time of its run"):
        measure([str(tmp_path / "old")])
    with pytest.raises(RecoError, match="is not there"):
        measure([str(tmp_path / "nothing")])
    writer = artifacts.ArtifactWriter(str(tmp_path / "frames"), FramesContent, {})
    writer.finished()
    writer.commit({"images": 1}, FramesContent())
    with pytest.raises(RecoError, match="holds frames: rates exist for embed, index, references"):
        measure([str(tmp_path / "frames")])


# --- commands -----------------------------------------------------------------------------------------------


def written(folder: Path, **stages: object) -> str:
    (folder / "pipeline.yaml").write_text(json.dumps({"stages": stages}))
    return str(folder / "pipeline.yaml")


def test_a_pipeline_becomes_work(tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("cat\ndog\nsky\n")
    pets, options = str(tmp_path / "pets.txt"), {"out": "o", "index": "i"}
    file = written(
        tmp_path,
        embed={"corpus": "c", "out": "e", "set": ["embed.shard_size=7"], "device": "cpu"},
        references=options | {"vocabulary": pets, "exemplars": 3},
        segment={"references": "o", "images": "c", "out": "m", "refine": "pamr"},
        label={"references": ["a", "b"], "images": "c", "out": "l"},
        train=options | {"vocabulary": [pets], "images": "c", "steps": 9},
        evaluate={"benchmark": "camvid", "data": "d", "index": "i"},
    )
    found = list(workloads(read_pipeline(file)))
    names = [
        "embed",
        "references",
        "segment",
        "label",
        "train: references",
        "train: label",
        "train",
        "evaluate",
    ]
    assert [work.name for work in found] == names
    embed, references, segment, label = found[:4]
    assert (embed.settings.embed.shard_size, embed.settings.models.device) == (7, "cpu")
    assert (references.settings.references.exemplars, references.concepts, references.context) == (3, 7, 5)
    assert (segment.settings.segment.refine, label.sets) == ("pamr", 2)
    assert (found[4].concepts, found[6].settings.train.steps) == (7, 9)
    (tmp_path / "chosen.yaml").write_text("concepts: {cat: {examples: [gone.jpg]}}")
    curation = {"curation": str(tmp_path / "chosen.yaml")}
    for stage in (
        {"references": options | {"vocabulary": pets}},
        {"train": options | {"vocabulary": [pets], "images": "c"}},
    ):
        ((name, fields),) = stage.items()
        with pytest.raises(RecoError, match=r"concept 'cat': examples: .*gone.jpg: cannot be read"):
            list(workloads(read_pipeline(written(tmp_path, **{name: fields | curation}))))


def test_trained_segmenters_are_work_by_network_after_their_training(tmp_path: Path) -> None:
    network = "smp:Unet/tu-tf_efficientnet_lite0"
    there = [write_segmenter(tmp_path / name, 3, image_size=96) for name in "ab"]
    file = written(
        tmp_path,
        segment=[
            {"references": "r", "images": "c", "out": "m"},
            {
                "segmenter": [*there, str(tmp_path / "to be trained")],
                "images": "c",
                "out": "n",
                "set": [f"train.segmenter={network}"],
            },
        ],
        train={"labels": ["l"], "out": "o"},
        evaluate={"benchmark": "camvid", "data": "d", "index": "i"},
    )
    found = list(workloads(read_pipeline(file)))
    assert [work.stage for work in found] == [
        "segment", "train", "segment-trained", "segment-trained", "evaluate",
    ]  # fmt: skip
    own, later = (work.settings.train for work in found[2:4])
    assert (own.segmenter, own.image_size) == (load_settings().train.segmenter, 96)
    assert (later.segmenter, later.image_size) == (network, load_settings().train.image_size)
    assert [work.sets for work in found[2:4]] == [2, 1]
    known = rate("segment-trained", found[2].settings, compute_seconds=0.5)
    planned = estimate(found[2], [known], CPUS, 1_000_000)
    assert planned.items == 2_000_000
    assert planned.hours == pytest.approx(1_000_000 / 32 / 3600)
    assert estimate(found[3], [known], CPUS, 10).bottleneck.startswith(
        "no rate with train.segmenter=smp:Unet"
    )


def test_plan_prints_a_table_a_number_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, embed={"corpus": "c", "out": "e"}, export={"segmenter": "s", "out": "x"})
    rates = tmp_path / "rates.yaml"
    rates.write_text(as_yaml([rate("embed", bytes_per_item=900, fixed_seconds=30)]))
    main(["plan", file, "--nodes", "4xCPU=8", "--images", "500K, 1B", "--rates", str(rates)])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "images" in line] == [
        "500,000 images",
        "1,000,000,000 images",
    ]
    rows = [line.split() for line in printed.splitlines() if line.startswith("embed")]
    assert rows == [
        ["embed", "500,000", "8", "4.35", "0", "0.45", "workers"],
        ["embed", "1,000,000,000", "8", "8,681", "0", "900", "workers"],
    ]
    head, embed, *_ = printed.splitlines()[1:]
    assert head.index("bottleneck") == embed.index("workers")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--nodes", "4"], 2, "--nodes '4': expected a count and resources"),
        (["--nodes", "CPU=4", "--images", "many"], 2, "--images 'many': expected numbers such as"),
        (["--nodes", "CPU=4", "--images", "0"], 2, "--images '0'"),
        ([], 2, "--nodes"),
        (
            ["--nodes", "CPU=4", "--rates", "nowhere.yaml"],
            1,
            "nowhere.yaml: the rates cannot be read: No such file",
        ),
        (["--nodes", "CPU=4", "--rates", "empty.yaml"], 1, "empty.yaml: has a rate for no stage"),
        (["--nodes", "CPU=4", "--rates", "broken.yaml"], 1, "broken.yaml: rate 0.speed: extra inputs"),
        (["--nodes", "CPU=4", "--rates", "words.yaml"], 1, "words.yaml: rate: input should be a valid list"),
        (["--nodes", "GPU=4", "--rates", "empty.yaml"], 1, "stage embed: no node has room for a worker"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, embed={"corpus": "c", "out": "e"})
    (tmp_path / "empty.yaml").write_text("[]")
    (tmp_path / "words.yaml").write_text("words")
    entry = rate("embed").model_dump() | {"speed": 3}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump([entry]))
    with pytest.raises(SystemExit) as ended:
        main(["plan", file, *arguments])
    printed = capsys.readouterr().err
    assert ended.value.code == status
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_the_rates_that_are_shipped_are_of_mini_as_it_is() -> None:
    """If this fails, a setting of `mini` that decides a speed has changed: measure again (docs/planning.md)."""
    rates, settings = read_rates(str(ROOT / "cluster" / "rates.yaml")), load_settings("mini")
    assert {"embed", "index", "references"} <= {each.stage for each in rates}
    for each in rates:
        assert each.machine
        assert each.stage == "index" or each.settings == decisive_settings(each.stage, settings)


def test_the_pipeline_that_measures_is_one_of_every_stage_with_rates() -> None:
    steps = read_pipeline(str(ROOT / "benchmarks" / "rates.yaml"))
    assert [work.stage for work in workloads(steps)] == list(ITEMS)
