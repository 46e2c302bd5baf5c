"""What bad input gets: a row in `rejected/`, or one line and a status; no traceback, and nothing is lost."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from artifacts import embeddings, files, rows
from images import encoded, photograph, png_header_only, png_of_zeros, write_photographs
from PIL import Image

from reco_ray.cli import main
from reco_ray.files.storage import read_table

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]
SMALL = ["--set", "embed.shard_size=4", "--set", "references.image_size=64", "--set", "segment.image_size=64"]


@pytest.fixture(scope="module")
def reco():
    """Runs a command in this process, on the tests' cluster -> (status, lines on standard error)."""

    def run(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as exit_:
            status = exit_.code
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        return status, output.err.splitlines()

    return run


def one_error(result: tuple[int, list[str]], status: int = 1) -> str:
    """The message of a command that failed as commands should."""
    assert result[0] == status, result
    read = re.compile(r"\d+ concepts?: .*")  # what a command says before it begins
    lines = [line for line in result[1] if not read.fullmatch(line)]
    assert len(lines) == 1, result
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    return lines[0].removeprefix("error: ")


# --- files that cannot be used, and odd ones that can -------------------------------------------------------


def bad_files() -> dict[str, tuple[bytes, str]]:
    """name -> (content, how the reason begins)."""
    jpeg = encoded(photograph(0), quality=90)
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "damaged: "),
        "zero.jpg": (b"", "empty file"),
        "text.jpg": (b"Dear diary, this is no photograph.\n" * 9, "not an image that can be decoded"),
        "header says 50000.png": (png_header_only(50_000, 50_000), "too large"),
        "really 50000.png": (png_of_zeros(50_000, 50_000), "too large"),
        "over the limit.png": (png_of_zeros(12_000, 9_000), "too large: 12000 x 9000 pixels"),
    }


def odd_files() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """name -> (content, width and height of the upright original)."""
    image = photograph(1)
    width, height = image.size
    sixteen = (np.asarray(image.convert("L")).astype(np.uint16) * 257)[: height // 2]
    frames = [image, image.transpose(Image.Transpose.ROTATE_180)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "cmyk.jpg": (encoded(image.convert("CMYK")), (width, height)),
        "sixteen bits.png": (encoded(Image.fromarray(sixteen), "PNG"), (width, height // 2)),
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), (width, height)),
        "see-through.png": (encoded(image.convert("RGBA"), "PNG"), (width, height)),
        "on its side #1.jpg": (encoded(image.crop((0, 0, 60, 40)), exif=rotated), (40, 60)),
        "фото 写真.webp": (encoded(image, "WEBP"), (width, height)),
        "one pixel.png": (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), (1, 1)),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad input") / "corpus"
    write_photographs(folder, 5)
    for name, (data, _) in [*bad_files().items(), *odd_files().items()]:
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def embedded(corpus) -> Path:
    out = corpus.parent / "embeddings"
    main(["embed", "--corpus", str(corpus), "--out", str(out), *SMALL])
    return out


@pytest.fixture(scope="module")
def index(embedded) -> Path:
    out = embedded.parent / "index"
    main(["index", "--embeddings", str(embedded), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def references(index) -> Path:
    out = index.parent / "references"
    words = ["--concepts", "dog,sky", "--exemplars", "3", *SMALL]
    main(["references", "--index", str(index), "--out", str(out), *words])
    return out


def copied(artifact: Path, place: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(artifact, place)
    return place


def test_every_bad_file_is_rejected_with_its_reason_and_every_odd_one_embedded(corpus, embedded):
    manifest = json.loads((embedded / "manifest.json").read_text())
    bad, odd = bad_files(), odd_files()
    counts = {
        "images": 5 + len(bad) + len(odd),
        "embedded": 5 + len(odd),
        "rejected": len(bad),
        "duplicates": 0,
    }
    assert manifest["counts"] == counts

    reasons = {Path(row["uri"]).name: row["reason"] for row in rows(embedded, "rejected")}
    assert reasons.keys() == bad.keys()
    for name, (_, beginning) in bad.items():
        assert reasons[name].startswith(beginning), name
        assert len(reasons[name].splitlines()) == 1

    sizes = {Path(row["uri"]).name: (row["width"], row["height"]) for row in rows(embedded, "embeddings")}
    assert {name: sizes[name] for name in odd} == {name: size for name, (_, size) in odd.items()}
    vectors = embeddings(embedded)
    assert all(
        np.isfinite(vector).all() and abs(np.linalg.norm(vector) - 1) < 2e-3 for vector in vectors.values()
    )


def test_odd_files_are_seen_as_what_they_show(corpus, embedded):
    """CMYK, transparency and a palette change the file, not the photograph: its embedding stays close."""
    by_name = {Path(row["uri"]).name: row["image_id"] for row in rows(embedded, "embeddings")}
    vectors = embeddings(embedded)
    plain = vectors[by_name["001.jpg"]]  # the same photograph
    for name in ("cmyk.jpg", "see-through.png", "animated.gif", "фото 写真.webp"):
        assert plain @ vectors[by_name[name]] > 0.8, name


def test_a_corpus_of_bad_files_only_is_an_error_that_says_why(reco, capsys, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.jpg").write_text("no image")
    message = one_error(reco(capsys, "embed", "--corpus", tmp_path / "corpus", "--out", tmp_path / "out"))
    assert message.endswith(
        "corpus: none of the 1 images can be used (the first: not an image that can be decoded)"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


# --- sources and outputs ------------------------------------------------------------------------------------


def test_a_folder_without_images(reco, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    message = one_error(reco(capsys, "embed", "--corpus", tmp_path / "empty", "--out", tmp_path / "out"))
    assert message.startswith(f"{tmp_path}/empty: no images here")
    message = one_error(reco(capsys, "embed", "--corpus", tmp_path / "nowhere", "--out", tmp_path / "out"))
    assert message == f"{tmp_path}/nowhere: no such file or folder"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/nowhere"])
def test_an_unwritable_output(reco, capsys, corpus, tmp_path, place):
    (tmp_path / "a_file").write_text("in the way")
    message = one_error(reco(capsys, "embed", "--corpus", corpus, "--out", tmp_path / place))
    assert message.startswith(f"{tmp_path / place}")
    assert ": cannot be written: " in message
    assert (tmp_path / "a_file").read_text() == "in the way"


def test_an_output_that_holds_something_else(reco, capsys, corpus, embedded, index, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    message = one_error(reco(capsys, "embed", "--corpus", corpus, "--out", tmp_path))
    assert message == f"{tmp_path}: is not empty and no embeddings artifact: choose another --out"
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]

    before = files(index)
    message = one_error(reco(capsys, "embed", "--corpus", corpus, "--out", index))
    assert message == f"{index}: holds index, but embeddings is needed here"
    message = one_error(
        reco(capsys, "embed", "--corpus", corpus.parent / "corpus" / "000.jpg", "--out", embedded)
    )
    assert "made with corpus = " in message
    assert files(index) == before


# --- artifacts that cannot be used --------------------------------------------------------------------------


def test_a_half_written_artifact(reco, capsys, embedded, index, references, corpus, tmp_path):
    """Without its manifest, or with half of it, each artifact is refused by the command that reads it."""
    commands = {
        embedded: ("index", "--embeddings"),
        index: ("references", "--concepts", "dog", "--exemplars", "3", *SMALL, "--index"),
        references: ("segment", "--images", corpus / "000.jpg", *SMALL, "--references"),
    }
    for artifact, command in commands.items():
        copy = copied(artifact, tmp_path / artifact.name)
        manifest = (copy / "manifest.json").read_bytes()
        (copy / "manifest.json").write_bytes(manifest[: len(manifest) // 2])
        message = one_error(reco(capsys, *command, copy, "--out", tmp_path / "out"))
        assert message == f"{copy}/manifest.json: not a manifest: delete the directory and make it again"
        (copy / "manifest.json").unlink()
        message = one_error(reco(capsys, *command, copy, "--out", tmp_path / "out"))
        assert "is unfinished: run the command that makes it again" in message
        message = one_error(reco(capsys, *command, tmp_path / "nothing", "--out", tmp_path / "out"))
        assert f"this {artifact.name} artifact is not there" in message
    assert not (tmp_path / "out").exists()


def test_files_missing_from_a_finished_artifact(reco, capsys, index, references, corpus, tmp_path):
    damaged = copied(index, tmp_path / "index")
    (vectors,) = (damaged / "shards").glob("*.faiss")
    vectors.write_bytes(vectors.read_bytes()[:100])
    command = ("references", "--concepts", "dog", "--exemplars", "3", *SMALL, "--out", tmp_path / "out")
    message = one_error(reco(capsys, *command, "--index", damaged))
    assert message.startswith(f"{damaged}: damaged (")
    assert message.endswith("delete it and index again")

    damaged = copied(references, tmp_path / "references")
    (damaged / "references.safetensors").write_bytes(b"")
    message = one_error(
        reco(
            capsys, "segment", "--images", corpus, "--references", damaged, *SMALL, "--out", tmp_path / "out"
        )
    )
    assert message.startswith(f"{damaged}: damaged (")


@pytest.mark.parametrize(("kind", "advice"), [("index", "index the corpus with it"), ("references", "anew")])
def test_an_artifact_made_with_another_model(reco, capsys, index, references, corpus, tmp_path, kind, advice):
    copy = copied({"index": index, "references": references}[kind], tmp_path / kind)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["content"]["model"] = "open_clip:ViT-B-16/openai#0123456789ab"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    command = {
        "index": ("references", "--concepts", "dog", "--exemplars", "3", "--index", copy),
        "references": ("segment", "--images", corpus, "--references", copy),
    }[kind]
    message = one_error(reco(capsys, *command, *SMALL, "--out", tmp_path / "out"))
    assert "open_clip:ViT-B-16/openai#0123456789ab" in message
    assert "conse:efficientnet_lite0" in message
    assert advice in message
    assert not (tmp_path / "out").exists()


def test_more_exemplars_than_images(reco, capsys, index, tmp_path):
    command = ("references", "--index", index, "--concepts", "dog", "--out", tmp_path / "out", *SMALL)
    message = one_error(reco(capsys, *command, "--exemplars", "13"))
    assert message == (
        f"{index}: 13 exemplars are asked for, but it has 12 images: use --exemplars 12 or fewer"
    )


def test_an_exemplar_that_is_gone(reco, capsys, corpus, index, tmp_path):
    """What a worker finds out reaches the user as one line too."""
    gone = corpus / "003.jpg"
    gone.rename(tmp_path / "003.jpg")
    command = (
        "references",
        "--index",
        index,
        "--out",
        tmp_path / "out",
        "--concepts",
        "dog",
        "--exemplars",
        "12",
    )
    try:
        message = one_error(reco(capsys, *command, *SMALL, "--set", "references.context_elimination=false"))
    finally:
        (tmp_path / "003.jpg").rename(gone)
    assert message == (
        f"{gone}: cannot be read: No such file or directory, though it is in the index: "
        "`reco-ray run` again takes out what is gone; else embed the corpus into another --out"
    )


# --- concepts -----------------------------------------------------------------------------------------------

COMMANDS = {
    "references": ("references", "--index", "nowhere"),
    "run": ("run", "--corpus", "nowhere", "--images", "nowhere"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("concepts", "says"),
    [
        ("", "the concept list is empty"),
        (" , ,", "the concept list is empty"),
        ("cat,dog,Cat", "concept 'Cat' is named twice: remove one"),
        ("a" * 101, "at most 100 characters"),
    ],
)
def test_bad_concept_lists(reco, capsys, tmp_path, command, concepts, says):
    """Said before anything is read or started."""
    message = one_error(reco(capsys, *command, "--concepts", concepts, "--out", tmp_path / "out"))
    assert message.startswith("--concepts: ")
    assert says in message
    file = tmp_path / "words.txt"
    file.write_text("\n".join(concepts.split(",")))
    message = one_error(reco(capsys, *command, "--vocabulary", file, "--out", tmp_path / "out"))
    assert message.startswith(f"{file}: ")
    assert says in message
    assert not (tmp_path / "out").exists()


def test_names_in_other_scripts_need_an_english_synonym(reco, capsys, index, tmp_path):
    command = ("references", "--index", index, "--out", tmp_path / "out", "--exemplars", "3", *SMALL)
    message = one_error(reco(capsys, *command, "--concepts", "dog,собака"))
    assert "'собака'" in message
    assert "give the concept an English synonym" in message

    words = tmp_path / "words.txt"
    words.write_text("собака: dog\n犬小屋: kennel, doghouse\n", encoding="utf-8")
    out = tmp_path / "with synonyms"
    status, lines = reco(
        capsys,
        "references",
        "--index",
        index,
        "--out",
        out,
        "--exemplars",
        "3",
        *SMALL,
        "--vocabulary",
        words,
    )
    assert status == 0, lines
    assert set(read_table(str(out / "exemplars.parquet"))["concept"].to_pylist()) == {"собака", "犬小屋"}


# --- usage --------------------------------------------------------------------------------------------------

EMBED = ("embed", "--corpus", "nowhere", "--out", "nowhere")
RUN = ("run", "--corpus", "a", "--images", "b", "--out", "c")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((*EMBED, "--preset", "huge"), 1, "unknown preset 'huge': choose one of "),
        ((*EMBED, "--set", "embed.shards=3"), 1, "setting embed.shards: there is no such setting"),
        ((*EMBED, "--set", "embed.shard_size"), 1, "--set 'embed.shard_size': expected section.field=value"),
        ((*EMBED, "--set", "embed.shard_size=0"), 1, "setting embed.shard_size: "),
        (
            (*EMBED, "--settings", "/nowhere.yaml"),
            1,
            "/nowhere.yaml: the settings cannot be read: No such file",
        ),
        ((*RUN, "--concepts", "cat", "--refine", "best"), 1, "setting segment.refine: "),
        ((*EMBED, "--unheard-of"), 2, "No such option: --unheard-of"),
        (("embed", "--out", "x"), 2, "Missing option '--corpus'"),
        (("embark",), 2, "No such command 'embark'"),
        (RUN, 2, "give the concepts either with --concepts a,b or with --vocabulary FILE"),
        ((*RUN, "--concepts", "cat", "--vocabulary", "v.txt"), 2, "give the concepts either with"),
        ((*RUN, "--concepts", "cat", "--exemplars", "few"), 2, "Invalid value for '--exemplars'"),
    ],
)
def test_wrong_usage(reco, capsys, tmp_path, monkeypatch, words, status, says):
    monkeypatch.chdir(tmp_path)
    assert says in one_error(reco(capsys, *words), status)
    assert list(tmp_path.iterdir()) == []


def test_help_is_no_error(reco, capsys):
    for words in ((), ("--help",), ("embed", "--help")):
        assert reco(capsys, *words) == (0, [])


# --- as a user runs it: a process of its own, everything that reaches the terminal --------------------------


def in_a_shell(*words: object, **environment: str) -> tuple[int, list[str], str]:
    done = run_python("from reco_ray.cli import main; main()", *words, **environment)
    return done.returncode, done.stderr.splitlines(), done.stdout


def run_python(code: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )


# Several commands in one process, which imports for seconds; each begins with a line of its own.
ONE_AFTER_ANOTHER = """
import shlex
import sys
from reco_ray.cli import main

for words in map(shlex.split, sys.argv[1:]):
    for stream in (sys.stdout, sys.stderr):
        print("command", file=stream, flush=True)
    try:
        main(words)
    except SystemExit as end:
        print("status", end.code, file=sys.stderr, flush=True)
"""


def test_nobody_listens_at_the_address(corpus, tmp_path):
    addresses = ["127.0.0.1:1", "nonsense"]
    embed = f"embed --corpus {shlex.quote(str(corpus))} --out {tmp_path}/out"
    commands = [*(f"{embed} --address {address}" for address in addresses), embed]
    done = run_python(ONE_AFTER_ANOTHER, *commands, RAY_ADDRESS="127.0.0.1:2")
    assert done.stdout == "command\n" * 3
    for address, said in zip([*addresses, "127.0.0.1:2"], done.stderr.split("command\n")[1:], strict=True):
        *lines, status = said.splitlines()
        assert one_error((int(status.removeprefix("status ")), lines)).startswith(
            f"no Ray cluster answers at {address}: "
        )
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line_with_ray_running_too(tmp_path):
    address = ray.get_runtime_context().gcs_address
    status, lines, output = in_a_shell(
        "embed", "--corpus", tmp_path, "--out", tmp_path / "out", RAY_ADDRESS=address
    )
    assert one_error((status, lines)).startswith(f"{tmp_path}: no images here")
    assert output == ""


def test_a_stage_says_one_line(corpus, tmp_path):
    words = ("embed", "--corpus", corpus / "000.jpg", "--out", tmp_path / "out")
    status, lines, output = in_a_shell(*words, RAY_ADDRESS="")
    assert (status, output) == (0, "")
    assert len(lines) == 1
    assert " ".join(lines[0].split()).startswith("embed 1 images, 1 embedded, 0 rejected, 0 duplicates ")
    assert lines[0].endswith(f"{tmp_path}/out")
