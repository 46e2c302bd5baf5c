"""Containers of images: every member is streamed, and read again by its address byte for byte."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, heic, photograph, write_photographs
from PIL import Image

from reco_ray.corpus import heic as heic_format
from reco_ray.corpus.listing import UNKNOWN, list_files
from reco_ray.corpus.read import list_images, read_image_bytes, read_members
from reco_ray.errors import RecoError


def write_tar(path, members, fmt=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=fmt) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def samples(count: int) -> dict[str, bytes]:
    """As WebDataset writes them: an image, its caption and its record side by side."""
    members = {}
    for number in range(count):
        members[f"{number:06d}.jpg"] = encoded(photograph(number, 48))
        members[f"{number:06d}.txt"] = b"a caption"
        members[f"{number:06d}.json"] = b"{}"
    return members


def streamed(uri, size=-1, rate=1.0):
    return list(read_members(str(uri), size, rate))


# --- tars ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_tar_are_streamed_and_found_again(tmp_path, fmt):
    members = samples(5)
    members["deep/folder/" + "long" * 24 + "/IMAGE@3+4 #1.JPG"] = encoded(photograph(7, 48))
    images = {name: data for name, data in members.items() if name.lower().endswith(".jpg")}
    tar = write_tar(tmp_path / "shard #0@1+2.tar", members, fmt)
    found = streamed(tar, tar.stat().st_size)
    assert [data for _, data in found] == list(images.values())
    assert [uri.rpartition("@")[0] for uri, _ in found] == [f"{tar}#{name}" for name in images]
    assert [read_image_bytes(uri) for uri, _ in found] == list(images.values())
    assert list_images(str(tar)).table["uri"].to_pylist() == [uri for uri, _ in found]


@pytest.mark.parametrize("where", ["in a member", "in a header", "between members"])
def test_a_tar_cut_in_the_middle_gives_what_is_whole_and_says_so(tmp_path, where):
    members = samples(4)
    tar = write_tar(tmp_path / "t.tar", members)
    whole = streamed(tar)
    start = int(whole[2][0].rpartition("@")[2].partition("+")[0])
    cut = {"in a member": start + 700, "in a header": start - 200, "between members": start - 512}[where]
    tar.write_bytes(tar.read_bytes()[:cut])
    found = streamed(tar)
    assert found[:2] == whole[:2]
    assert len(found) == 3
    assert found[2][0] == str(tar)
    assert str(found[2][1]).startswith("damaged tar: ")


def test_a_changed_or_missing_container_is_one_error(tmp_path):
    tar = write_tar(tmp_path / "t.tar", samples(2))
    ((uri, error),) = streamed(tar, tar.stat().st_size - 1)
    assert uri == str(tar)
    assert "changed since it was listed" in str(error)
    ((uri, error),) = streamed(tmp_path / "gone.tar")
    assert str(error) == "No such file or directory"
    (tmp_path / "text.tar").write_text("no tar" * 300)
    ((uri, error),) = streamed(tmp_path / "text.tar")
    assert str(error).startswith("damaged tar: ")


def test_addresses_that_do_not_exist_are_an_os_error(tmp_path):
    tar = write_tar(tmp_path / "t.tar", samples(1))
    for address in ("#0.jpg@999999+5", "#0.jpg", "#0.jpg@x+1"):
        with pytest.raises(OSError, match=r".+"):
            read_image_bytes(f"{tar}{address}")


def test_compressed_tars_are_refused(tmp_path):
    with pytest.raises(RecoError, match=r"t\.tar\.gz: no image inside a compressed tar .* decompress it"):
        list_files(str(tmp_path / "t.tar.gz"))


def test_a_huge_member_is_refused_unread(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": bytes(5000), "b.jpg": b"small"})
    monkeypatch.setattr("reco_ray.corpus.read.MAX_BYTES", 4000)
    (_, error), (_, data) = streamed(tar)
    assert str(error) == "too large: 5,000 bytes, the limit is 4,000"
    assert data == b"small"


# --- folders of containers ----------------------------------------------------------------------------------


def test_a_folder_of_tars_and_tables_is_listed_by_file(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", samples(number + 1))
    data = [encoded(photograph(n, 48)) for n in range(4)]
    pq.write_table(pa.table({"jpg": data}), tmp_path / "t.parquet")
    listing = list_files(str(tmp_path))
    inside = dict(zip(listing.table["uri"].to_pylist(), listing.table["images"].to_pylist(), strict=True))
    assert inside.pop(str(tmp_path / "t.parquet")) == 4
    assert inside == {str(tmp_path / f"{number}.tar"): UNKNOWN for number in range(3)}
    assert list_images(str(tmp_path)).table.num_rows == 1 + 2 + 3 + 4
    # Photographs beside them are what is meant, then.
    write_photographs(tmp_path, 2)
    assert list_files(str(tmp_path)).table["images"].to_pylist() == [1, 1]
    assert list_files(str(tmp_path / "*.tar")).table.num_rows == 3


# --- videos -------------------------------------------------------------------------------------------------


def write_video(path, seconds, rate=10):
    """A clip whose frames get brighter."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(int(seconds * rate)):
            grey = np.full((48, 64, 3), 5 * number % 256, np.uint8)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
        clip.mux(stream.encode())
    return path


def test_videos_are_sampled_by_rate_and_every_frame_is_found_again(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 4.2)
    found = streamed(clip, rate=2)
    assert [uri for uri, _ in found] == [f"{clip}#t={n / 2:g}" for n in range(9)]
    brightness = [np.asarray(Image.open(io.BytesIO(data))).mean() for _, data in found]
    assert np.allclose(brightness, [5 * 5 * n for n in range(9)], atol=4)
    for uri, data in found:
        assert read_image_bytes(uri) == data
    assert list_files(str(tmp_path)).table["uri"].to_pylist() == [str(clip)]


def test_a_damaged_video_is_one_error(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 2)
    clip.write_bytes(clip.read_bytes()[:500])
    ((uri, error),) = streamed(clip)
    assert uri == str(clip)
    assert str(error).startswith("damaged video: ")
    with pytest.raises(OSError, match="damaged video"):
        read_image_bytes(f"{clip}#t=1")


# --- HEIC ---------------------------------------------------------------------------------------------------


def test_heic_is_listed_in_folders_and_in_tars(tmp_path):
    data = heic(photograph(0))
    for name in ("a.heic", "B.HEIC", "c.heif", "d.hif"):
        (tmp_path / name).write_bytes(data)
    assert len(list_files(str(tmp_path)).table) == 4
    assert len(list_files(str(tmp_path / "*.heic")).table) == 1
    assert read_image_bytes(str(tmp_path / "B.HEIC")) == data
    tar = write_tar(tmp_path / "t.tar", {"a.heic": data, "b.HEIF": data})
    assert [found for _, found in streamed(tar)] == [data, data]


def test_only_heic_and_no_package_for_it_ends_before_the_work_begins(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "b.HEIF").write_bytes(b"xx")
    list_files(str(tmp_path))
    monkeypatch.setattr(heic_format, "_PACKAGES", ())
    with pytest.raises(
        RecoError, match=r'all 2 images are HEIC\. HEIC needs the extra heic: pip install "reco-ray\[heic\]"$'
    ):
        list_files(str(tmp_path))
    (tmp_path / "c.jpg").write_bytes(b"xxx")
    assert len(list_files(str(tmp_path)).table) == 3
