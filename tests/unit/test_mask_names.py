"""Names of masks: one an image, traceable, fit for any file system, whatever the sources are called."""

import random

import pyarrow as pa
import pytest

from reco_ray.files import storage
from reco_ray.segmentation.names import add_names, file_name

ROOT = "/data/photos"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/photos/x.jpg", "x.jpg"),
        ("/data/photos/x.png", "x.png"),
        ("/data/photos/x.jpg.jpg", "x.jpg.jpg"),
        ("/data/photos/x", "x"),
        ("/data/photos/street/фото 写真 (1).webp", "street/фото 写真 (1).webp"),
        ("/data/photos/.hidden/IMG_0001.JPG", ".hidden/IMG_0001.JPG"),
        ("/data/photos/t.parquet#17", "t.parquet/17"),
        ("/data/photos/2024/a.tar#cats/1.jpg@512+9000", "2024/a.tar/cats/1.jpg@512+9000"),
        ("/data/photos/clip.mp4#t=1.5", "clip.mp4/t=1.5"),
    ],
)
def test_an_image_is_called_by_its_path_below_the_root(uri: str, name: str) -> None:
    assert file_name(uri, ROOT) == name


@pytest.mark.parametrize("root", ["/data/photos/t.parquet", "/data/photos"])
def test_a_container_alone_counts_with_its_name(root: str) -> None:
    assert file_name("/data/photos/t.parquet#3", root) == "t.parquet/3"


@pytest.mark.parametrize(
    ("uri", "readable"),
    [
        ("/data/photos/../cat.jpg", "cat.jpg"),
        ("/data/photos/./cat.jpg", "cat.jpg"),
        ("/data/photos/../../etc/passwd", "etc/passwd"),
        ("/data/photos2/cat.jpg", "data/photos2/cat.jpg"),
        ("s3://bucket/cat.jpg", "bucket/cat.jpg"),
        ("https://host:80/a/cat.jpg?width=30&sig=a%2Fb", "host_80/a/cat.jpg_width=30&sig=a_2Fb"),
        ("/data/photos/a.tar#../../cat.jpg@512+9000", "a.tar/cat.jpg@512+9000"),
        ("/data/photos/a.tar#/etc/cat.jpg@512+9000", "a.tar/etc/cat.jpg@512+9000"),
        ("/data/photos/#1: what?.jpg", "_1_ what_.jpg"),
        ("/data/photos/CON.jpg", "_CON.jpg"),
        ("/data/photos/dot.", "dot"),
        ("/data/photos/cat.jpg~0123456789ab", "cat.jpg~0123456789ab"),
        ("/data/photos/cat.jpg.png/x.jpg", "cat.jpg.png_/x.jpg"),
        ("/data/photos/t.parquet/17", "t.parquet/17"),
        ("/data/photos/..", "image"),
    ],
)
def test_what_cannot_be_a_name_keeps_its_readable_part_and_gets_a_digest(uri: str, readable: str) -> None:
    name, _, digest = file_name(uri, ROOT).rpartition("~")
    assert name == readable
    assert len(digest) == 12


@pytest.mark.parametrize(
    "uri",
    [
        f"/data/photos/{'x' * 251}.jpg",
        f"/data/photos/{'写' * 83}.jpg",
        f"/data/photos/{'写' * 83}/{'x' * 251}.jpg",
        "/data/photos/" + "/".join(["long folder " * 10] * 20) + "/x.jpg",
        f"https://host/image?{'signature=0123456789&' * 200}",
        f"/data/photos/t.tar#{'x' * 251}.jpg@512+9000",
    ],
)
def test_long_names_fit_every_file_system_and_store(uri: str) -> None:
    name, other = file_name(uri, ROOT), file_name(f"{uri}2", ROOT)
    assert name != other
    assert len(name.encode()) <= 800
    assert max(len(part.encode()) for part in name.split("/")) <= 200


def test_long_names_can_be_written(tmp_path) -> None:
    name = file_name(f"/data/photos/{'写' * 83}.jpg", ROOT)
    storage.write_bytes(storage.join(str(tmp_path), "masks", f"{name}.png"), b"x")
    assert [file.name for file in (tmp_path / "masks").iterdir()] == [f"{name}.png"]


def test_no_two_uris_share_a_name_or_leave_the_folder(tmp_path) -> None:
    """Paths drawn from the pieces that are awkward, all written below one folder."""
    chance = random.Random(0)
    pieces = [
        "..",
        ".",
        "x",
        "x.jpg",
        "x.jpg.png",
        "t.parquet",
        "#",
        "?",
        "%23",
        "con",
        "x~0123456789ab",
        " ",
        "写" * 70,
    ]
    uris = {"/data/photos/" + "/".join(chance.choices(pieces, k=chance.randint(1, 4))) for _ in range(3000)}
    uris |= {f"/data/photos/{a}{b}" for a in pieces for b in ("#1", "#a.jpg@5+6", "?q=1", ".tar#x", ".")}
    uris |= {f"{scheme}{a}/{b}" for scheme in ("/", "s3://", "http://") for a in pieces for b in pieces}
    names = [file_name(uri, ROOT) for uri in sorted(uris)]
    assert len(set(names)) == len(names)
    assert not any({"", ".", ".."} & set(name.split("/")) for name in names)
    for name in names:  # a mask never has the name of a folder
        storage.write_bytes(storage.join(str(tmp_path), f"{name}.png"), b"")
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == len(names)


def test_an_image_that_a_list_names_again_has_one_mask_and_others_rename_nothing() -> None:
    uris = ["/l/cat.jpg", "/l/../cat.jpg", "/l/cat.jpg", "/l/dog.jpg"]
    named = add_names(pa.table({"uri": uris, "size": [1, 2, 1, 3]}), "/l")
    assert named["uri"].to_pylist() == ["/l/cat.jpg", "/l/../cat.jpg", "/l/dog.jpg"]
    assert named["size"].to_pylist() == [1, 2, 3]
    assert len(set(named["name"].to_pylist())) == 3
    fewer = add_names(pa.table({"uri": uris[3:]}), "/l")
    assert fewer["name"].to_pylist() == named["name"].to_pylist()[2:] == ["dog.jpg"]
