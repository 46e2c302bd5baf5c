"""`reco-ray search`: words and images in, hits and a contact sheet out; real photographs, the real small model."""

import csv
import io
import re
from pathlib import Path

import pytest
from images import photograph, png_header_only, write_photographs
from PIL import Image

from reco_ray.cli import main
from reco_ray.config import load_settings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.index import CorpusIndex, build_index
from reco_ray.corpus.load import load_images
from reco_ray.corpus.read import list_images
from reco_ray.corpus.search import COLUMNS, TILE
from reco_ray.corpus.stage import EmbedWorker
from reco_ray.files import artifacts
from reco_ray.models import load_language_image_model
from reco_ray.models.description import describe_retrieval_model
from reco_ray.models.prompts import encode_prompts

COUNT = 14


@pytest.fixture(scope="module")
def settings():
    return load_settings("mini")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    written = write_photographs(folder / "a", COUNT, long_side=128)
    (folder / "ab").mkdir()
    for file in written[::4]:
        file.rename(folder / "ab" / file.name)
    return folder


@pytest.fixture(scope="module")
def index(corpus, settings, tmp_path_factory) -> str:
    """Embedded by the stage's own pieces, without a cluster; indexed as by the command."""
    out = tmp_path_factory.mktemp("made")
    model = load_language_image_model(settings.models.retrieval)
    writer = artifacts.ArtifactWriter(str(out / "embeddings"), EmbeddingsContent, {"corpus": str(corpus)})
    assert writer.finished() is None
    worker = EmbedWorker(
        settings.models, 0, 8, str(out / "embeddings"), describe_retrieval_model(settings.models, 0)
    )
    worker.set_up("cpu")
    loaded = load_images(
        list_images(str(corpus)).table["uri"].to_pylist(),
        model.transform.crop,
        max_pixels=settings.embed.max_pixels,
        short_side=model.transform.size,
    )
    worker.work("00000000", loaded)
    content = EmbeddingsContent(dim=model.embedding_dim, model=model.fingerprint, shards=1)
    writer.commit({"embedded": COUNT}, content)
    build_index(str(out / "embeddings"), str(out / "index"))
    return str(out / "index")


@pytest.fixture
def search(index, tmp_path, capsys):
    """Runs the command: what it prints as (rank, similarity, uri), and its sheet."""

    def run(*options: str) -> tuple[list[tuple[int, float, str]], Image.Image]:
        main(["search", "--index", index, "--out", str(tmp_path / "out"), *options])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["rank", "similarity", "uri"]
        hits = [re.fullmatch(r"\s*(\d+)\s+(-?[\d.]+)  (.+)", line).groups() for line in lines[1:]]
        (sheet,) = (tmp_path / "out").glob("*.jpg")
        return [(int(rank), float(s), uri) for rank, s, uri in hits], Image.open(sheet)

    return run


@pytest.fixture
def fails(index, tmp_path, capsys):
    def run(*options: str, status: int = 1) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["search", "--index", index, "--out", str(tmp_path / "out"), *options])
        assert exit_.value.code == status
        printed = capsys.readouterr()
        assert printed.out == ""
        assert not (tmp_path / "out").exists()
        (line,) = printed.err.splitlines()
        return line

    return run


def test_words_find_what_the_index_finds_for_their_prompts(search, index, settings):
    hits, sheet = search("a cat", "--k", "7", "--set", "models.templates=simple")
    model = load_language_image_model(settings.models.retrieval)
    opened = CorpusIndex(index, model.fingerprint)
    query = encode_prompts(model, [["a cat"]], "simple").numpy()
    similarities, rows = opened.search(query, 7)
    assert [rank for rank, _, _ in hits] == list(range(1, 8))
    assert [uri for _, _, uri in hits] == opened.images.take(rows)["uri"].to_pylist()
    assert [s for _, s, _ in hits] == pytest.approx(similarities[0], abs=1e-3)
    assert sheet.format == "JPEG"
    assert sheet.width > COLUMNS * TILE
    assert sheet.height > 2 * TILE


def test_an_image_finds_itself(search, corpus):
    file = corpus / "a" / "003.jpg"
    hits, _ = search("--image", str(file), "--k", "3")
    assert hits[0][2] == str(file)
    assert hits[0][1] == pytest.approx(1, abs=0.02)
    assert hits[1][1] < hits[0][1]


@pytest.mark.parametrize(("folder", "count"), [("a/", 10), ("ab", 4), ("a", 14)])
def test_a_prefix_keeps_what_begins_with_it(search, corpus, folder, count):
    hits, _ = search("dog", "--prefix", f"{corpus}/{folder}")
    assert len(hits) == count
    assert all(uri.startswith(f"{corpus}/{folder}") for _, _, uri in hits)


def test_an_image_that_is_gone_is_a_grey_tile(search, corpus):
    gone = corpus / "a" / "001.jpg"
    data = gone.read_bytes()
    gone.unlink()
    try:
        hits, sheet = search("bird", "--k", str(COUNT))
    finally:
        gone.write_bytes(data)
    place = next(rank for rank, _, uri in hits if uri == str(gone)) - 1
    left, top = 8 + place % COLUMNS * (TILE + 8), 8 + place // COLUMNS * (TILE + 24)
    red, green, blue = sheet.getpixel((left + 100, top + 20))
    assert max(red, green, blue) - min(red, green, blue) < 8
    assert red == pytest.approx(211, abs=8)


def test_the_images_found_are_exported(search, tmp_path):
    hits, _ = search("a cat", "--k", "3", "--export", str(tmp_path / "found"))
    rows = list(csv.DictReader((tmp_path / "found" / "manifest.csv").open()))
    assert [row["uri"] for row in rows] == [uri for _, _, uri in hits]
    for row in rows:
        assert (tmp_path / "found" / row["file"]).read_bytes() == Path(row["uri"]).read_bytes()


def test_wrong_usage_is_one_line(fails):
    assert "give either words" in fails(status=2)
    assert "give either words" in fails("  ", status=2)
    assert "give either words" in fails("cat", "--image", "x.jpg", status=2)
    assert "--k" in fails("cat", "--k", "0", status=2)


def test_what_cannot_be_is_one_line(fails, tmp_path):
    assert fails("cat", "--k", "15").startswith("error: --k 15: ")
    assert "has 14 images" in fails("cat", "--k", "15")
    assert "no image of" in fails("cat", "--k", "2", "--prefix", "/nowhere")
    assert "x.jpg: cannot be read: No such file" in fails("--image", str(tmp_path / "x.jpg"), "--k", "2")
    (tmp_path / "cut.png").write_bytes(png_header_only(40, 40))
    assert "cut.png: damaged" in fails("--image", str(tmp_path / "cut.png"), "--k", "2")
    assert "is there already: choose another place" in fails("cat", "--export", str(tmp_path))
    assert "made with model" in fails("cat", "--set", "models.retrieval=open_clip:RN50/random", "--k", "2")


def test_a_query_image_may_be_of_any_kind(search, tmp_path):
    buffer = io.BytesIO()
    photograph(20).convert("RGBA").save(buffer, "PNG")
    (tmp_path / "query.png").write_bytes(buffer.getvalue())
    assert len(search("--image", str(tmp_path / "query.png"), "--k", "2")[0]) == 2
