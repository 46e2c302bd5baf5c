"""Which files a folder's listing takes, which it says it leaves out, and which are rejected where they are read."""

import os
import tempfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, photograph, write_photographs

from reco_ray.contents import EmbeddingsContent, MasksContent
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.own_output import MARK, mark_output
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four photographs."""
    write_photographs(tmp_path / "corpus", 4, 48)
    return tmp_path / "corpus"


def names(source) -> list[str]:
    """The paths that are listed, relative to the folder, sorted."""
    listing = list_files(str(source))
    return sorted(uri.removeprefix(f"{listing.root}/") for uri in listing.table["uri"].to_pylist())


def refused(source) -> dict[str, str]:
    """Of the images of a source those that cannot be read, and why."""
    reasons = {}
    for uri in list_images(str(source)).table["uri"].to_pylist():
        try:
            read_image_bytes(uri)
        except OSError as error:
            reasons[uri] = str(error)
    return reasons


FOUR = ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]

# --- what is left out is said -------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_said_once_with_what_takes_it_in(folder, capfd):
    for name in ("a.mp4", "b.MOV", "raw.CR2", "all.zip", "t.tar.gz", "000.json", "001.json", ".DS_Store"):
        (folder / name).write_bytes(b"something")
    left_out = list_files(str(folder)).left_out
    assert left_out == {
        "videos": 2,
        "pictures of other formats": 1,
        "archives": 2,
        "other files": 2,
        "hidden and system files": 1,
    }
    list_images(str(folder))
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"{folder}: left out: 2 videos (.m")
    assert f"the glob '{folder}/**' takes videos too" in said
    assert "1 picture of another format (.cr2: convert them to JPEG or PNG)" in said
    assert "2 other files (2 .json: a list that names files takes them" in said
    assert "1 hidden or system file (.DS_Store" in said


def test_what_the_line_advises_works(folder):
    pytest.importorskip("av")
    for name in ("clip.mp4", "scan.dat", ".hidden.jpg"):
        (folder / name).write_bytes(encoded(photograph(7, 48)))
    assert names(f"{folder}/**") == sorted([*FOUR, "clip.mp4", "scan.dat"])
    (folder.parent / "list.txt").write_text("corpus/.hidden.jpg\n")
    assert names(folder.parent / "list.txt") == ["corpus/.hidden.jpg"]
    assert names(f"{folder}/.h*.jpg") == [".hidden.jpg"]
    assert names(f"{folder}/*.dat") == ["scan.dat"]


def test_nothing_but_what_is_left_out_is_an_error_that_says_what(tmp_path):
    (tmp_path / "raw.nef").write_bytes(b"II*\0")
    with pytest.raises(RecoError, match=r"no images here .*; left out: 1 picture of another format \(\.nef"):
        list_files(str(tmp_path))
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(RecoError, match=r"x\.zip: archives are not read: unpack it"):
        list_files(str(tmp_path / "x.zip"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_files_without_a_suffix_are_taken_if_they_begin_as_an_image(tmp_path, kind):
    data = encoded(photograph(1, 48), kind)
    (tmp_path / "4f2a9c").write_bytes(data)
    (tmp_path / "README").write_text("no image")
    listing = list_files(str(tmp_path))
    assert [read_image_bytes(uri) for uri in listing.table["uri"].to_pylist()] == [data]
    assert listing.left_out == {"other files": 1}
    assert names(tmp_path / "4f2a9c") == ["4f2a9c"]


def test_suffixes_that_downloads_get_are_looked_into(folder):
    for name in ("a.jpg_large", "b.jpg?w=300", "IMG.20240101"):
        (folder / name).write_bytes(encoded(photograph(2, 48)))
    (folder / "half.jpg.part").write_bytes(encoded(photograph(2, 48))[:100])
    assert names(folder) == sorted([*FOUR, "a.jpg_large", "b.jpg?w=300", "IMG.20240101"])


def test_in_a_store_files_without_a_suffix_are_counted_unread():
    with fsspec.filesystem("memory").open("/unnamed/4f2a9c", "wb") as file:
        file.write(encoded(photograph(1, 48)))
    storage.write_bytes("memory://unnamed/x.jpg", encoded(photograph(2, 48)))
    listing = list_files("memory://unnamed")
    assert listing.table.num_rows == 1
    assert listing.left_out == {"files without a suffix": 1}


# --- systems and tools --------------------------------------------------------------------------------------

JUNK_FILES = [
    "._000.jpg",
    "Thumbs.db",
    "desktop.ini",
    "_SUCCESS",
    "_committed_12",
    "_started_12",
    ".x.jpg.crc",
]
JUNK_FOLDERS = [".git", "__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN"]


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("end", ["", "/**", "/**/*.jpg", "/*"])
def test_what_systems_and_tools_leave_is_never_an_image(folder, scheme, end):
    source = f"{scheme}{folder}"
    for number, name in enumerate([*FOUR, *JUNK_FILES, *(f"{name}/thumb.jpg" for name in JUNK_FOLDERS)]):
        storage.write_bytes(f"{source}/{name}", encoded(photograph(number, 48)))
    storage.write_bytes(f"{source}/_DSC0001.jpg", encoded(photograph(27, 48)))  # a camera's own name
    assert names(source + end) == [*FOUR, "_DSC0001.jpg"]
    if not end:
        assert list_files(source).left_out == {"hidden and system files": len(JUNK_FILES + JUNK_FOLDERS)}


def test_a_hidden_folder_can_be_named(folder):
    hidden = folder / ".cache"
    write_photographs(hidden, 2, 48)
    assert names(hidden) == FOUR[:2]


# --- links, and what cannot be read -------------------------------------------------------------------------


def test_loops_of_links_end_and_change_nothing(folder):
    (folder / "sub").mkdir()
    for link, target in {"self": ".", "up": "..", "root": "/", "sub/back": "..", "eye": "eye"}.items():
        (folder / link).symlink_to(target)
    listing = list_files(str(folder))
    assert names(folder) == sorted([*FOUR, "eye"])  # "eye" is a link to itself, and rejected
    assert listing.left_out == {"links to folders that are listed anyhow": 4}
    assert list(refused(folder).values()) == [f"[Errno 40] Too many levels of symbolic links: '{folder}/eye'"]


def test_a_folder_that_several_paths_lead_to_is_listed_once_by_its_real_path(folder):
    write_photographs(folder / "zebra", 2, 48)
    write_photographs(folder.parent / "elsewhere", 2, 48)
    (folder / "a-link").symlink_to("zebra")
    (folder / "first").symlink_to("../elsewhere")
    (folder / "second").symlink_to("../elsewhere")
    assert names(folder) == sorted(
        [*FOUR, *(f"{place}/{name}" for place in ("zebra", "first") for name in FOUR[:2])]
    )


def test_links_to_files_are_files(folder):
    (folder / "link.jpg").symlink_to("000.jpg")
    assert names(folder) == [*FOUR, "link.jpg"]
    assert refused(folder) == {}


def test_links_to_nothing_pipes_and_odd_names_are_rejected_with_their_reason(folder):
    (folder / "gone.jpg").symlink_to("nothing.jpg")
    (folder / "unmounted").symlink_to("/nowhere/photographs")
    (folder / "notes.md").symlink_to("nothing.md")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.tar")
    os.mkfifo(folder / "pipe.parquet")
    os.mkfifo(folder / "control")
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    pipe = "a pipe, a socket or a device, not a file"
    assert {Path(uri).name: why for uri, why in refused(folder).items()} == {
        "gone.jpg": "a link to what is not there",
        "unmounted": "a link to what is not there",
        "pipe.jpg": pipe,
        "pipe.tar": pipe,
        "pipe.parquet": pipe,
        r"\xff.jpg": "its name is not UTF-8: rename it",
        r"caf\xe9": "its name is not UTF-8: rename it",
    }
    assert list_files(str(folder)).left_out == {"pipes, sockets and devices": 1, "other files": 1}
    with pytest.raises(RecoError, match=r"caf\\xe9: the path is not UTF-8: rename it"):
        list_files(str(folder / os.fsdecode(b"caf\xe9")))


def test_a_folder_that_cannot_be_listed_is_rejected_with_its_path():
    with tempfile.TemporaryDirectory(prefix="reco-closed-") as root:
        folder = Path(root)
        folder.chmod(0o755)
        write_photographs(folder, 4, 48)
        closed = folder / "lost+found"
        closed.mkdir(mode=0o000)
        user = os.geteuid()
        try:
            if user == 0:  # whom no mode keeps out
                os.seteuid(65534)
            assert names(folder) == [*FOUR, "lost+found"]
            assert names(folder / "*.jpg") == FOUR  # which does not look into folders
            assert list(refused(folder)) == [str(closed)]
            assert "Permission denied" in refused(folder)[str(closed)]
            with pytest.raises(RecoError, match=r"lost\+found: cannot be listed: Permission denied"):
                list_files(str(closed))
        finally:
            os.seteuid(user)
            closed.chmod(0o700)


def test_folders_deeper_than_paths_may_be_long(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for _ in range(45):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    (deep,) = refused(folder)
    assert len(deep) > 4096
    assert len(names(folder)) == 5


def test_a_list_that_names_a_folder_says_so(folder):
    (folder / "list.txt").write_text("000.jpg\n../corpus\n")
    assert list(refused(folder / "list.txt").values()) == ["a folder, not a file"]


# --- what reco-ray wrote ------------------------------------------------------------------------------------


def write_run(out: str) -> None:
    """Folders as `run` and a killed `segment` leave them."""
    mark_output(out)
    storage.write_bytes(f"{out}/report/index.html", b"<html>")
    storage.write_bytes(f"{out}/references/sheets/dog.jpg", encoded(photograph(1, 48)))
    if "://" not in out:
        content = MasksContent(labels=[], palette=[], references="")
        artifacts.ArtifactWriter(f"{out}/masks", MasksContent, {"of": 1}).commit({}, content)
    storage.write_bytes(f"{out}/masks/overlays/0.jpg", encoded(photograph(2, 48)))


def write_unfinished(out: str) -> None:
    storage.write_bytes(f"{out}/started.json", b'{"kind": "masks", "made_from": {"of": 1}}')
    storage.write_bytes(f"{out}/masks/0.png", encoded(photograph(3, 48)))


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("end", ["", "/**", "/**/*.jpg"])
def test_what_reco_ray_wrote_is_never_its_own_input(folder, scheme, end):
    source = f"{scheme}{folder}"
    for name in FOUR:
        storage.write_bytes(f"{source}/{name}", encoded(photograph(5, 48)))
    before = list_files(source + end).fingerprint
    write_run(f"{source}/deep/down/out")
    write_unfinished(f"{source}/begun")
    listing = list_files(source + end)
    assert listing.fingerprint == before
    assert listing.left_out == {"folders that reco-ray wrote": 2}


def test_a_glob_that_does_not_reach_into_an_output_says_nothing_of_it(folder):
    write_unfinished(str(folder / "masks"))
    assert list_files(str(folder / "*.jpg")).left_out == {}


def test_artifacts_in_a_folder_of_photographs_are_known_without_a_mark(folder):
    """`--out` of a run may be the folder of the photographs itself, which is never marked."""
    before = list_files(str(folder)).fingerprint
    mark_output(str(folder))
    assert not (folder / MARK).exists()
    artifacts.ArtifactWriter(str(folder / "embeddings"), EmbeddingsContent, {"of": 1}).commit(
        {}, EmbeddingsContent(dim=8, model="m", shards=1)
    )
    pq.write_table(pa.table({"uri": ["x.jpg"]}), folder / "embeddings" / "0.parquet")
    write_unfinished(str(folder / "masks"))
    assert list_files(str(folder)).fingerprint == before


def test_a_folder_inside_an_artifact_can_be_named_an_artifact_cannot(folder):
    masks = folder / "masks"
    write_unfinished(str(masks))
    assert names(masks / "masks") == ["0.png"]
    assert names(masks / "*" / "*.png") == ["masks/0.png"]
    with pytest.raises(RecoError, match=r"masks: reco-ray wrote this itself, it is no source of images"):
        list_files(str(masks))


def test_other_programs_call_files_manifest_json_too(folder):
    for name, text in {"web": '{"name": "an app"}', "torn": "{", "list": "[1]"}.items():
        write_photographs(folder / name, 1, 48)
        (folder / name / "manifest.json").write_text(text)
        (folder / name / "started.json").write_text(text)
    assert names(folder) == sorted([*FOUR, *(f"{name}/000.jpg" for name in ("web", "torn", "list"))])
