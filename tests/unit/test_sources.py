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
    (tmp_path / "t.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(RecoError, match=r"t\.tar\.gz: no image inside a compressed tar .* decompress it"):
        list_files(str(tmp_path / "t.tar.gz"))


def test_a_huge_member_is_refused_unread(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": bytes(5000), "b.jpg": b"small"})
    monkeypatch.setattr("reco_ray.corpus.read.MAX_BYTES", 4000)
    (_, error), (_, data) = streamed(tar)
    assert str(error) == "too large: 5,000 bytes, the limit is 4,000"
    assert data == b"small"


def test_tars_joined_by_cat_are_read_to_the_last(tmp_path):
    first, second, third = (
        {f"{part}/{name}": data for name, data in samples(3).items()} for part in ("a", "b", "c")
    )
    parts = [
        write_tar(tmp_path / f"{n}.tar", each).read_bytes() for n, each in enumerate((first, second, third))
    ]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(parts[0] + bytes(1 << 20) + parts[1] + parts[2])
    found = streamed(joined)
    images = {n: d for n, d in (first | second | third).items() if n.endswith(".jpg")}
    assert [uri.partition("#")[2].partition("@")[0] for uri, _ in found] == list(images)
    assert [data for _, data in found] == list(images.values())
    assert [read_image_bytes(uri) for uri, _ in found] == list(images.values())


@pytest.mark.parametrize("behind", [b"x" * 10240, b"x" * 100])
def test_what_is_no_tar_behind_a_tar_is_said(tmp_path, behind):
    tar = write_tar(tmp_path / "t.tar", samples(2))
    whole = streamed(tar)
    tar.write_bytes(tar.read_bytes() + behind)
    *found, (uri, error) = streamed(tar)
    assert found == whole
    assert uri == str(tar)
    assert str(error).startswith("damaged tar: ")


def test_a_damaged_header_in_the_middle_of_a_tar_is_said(tmp_path):
    tar = write_tar(tmp_path / "t.tar", samples(4), tarfile.USTAR_FORMAT)
    whole = streamed(tar)
    start = int(whole[2][0].rpartition("@")[2].partition("+")[0])
    data = bytearray(tar.read_bytes())
    data[start - 512 + 148 : start - 512 + 156] = b"99999999"  # the header's checksum
    tar.write_bytes(data)
    *found, (uri, error) = streamed(tar)
    assert found == whole[:2]
    assert (uri, str(error)) == (
        str(tar),
        "damaged tar: no header where a member should begin, what follows is lost",
    )
    assert list_images(str(tar)).table["uri"].to_pylist()[2] == str(tar)
    with pytest.raises(OSError, match="damaged tar: no header"):
        read_image_bytes(str(tar))


def test_what_systems_leave_in_a_tar_is_passed_over_and_names_without_a_suffix_are_not(tmp_path):
    image = encoded(photograph(3, 48))
    members = {"./000.jpg": image, "./._000.jpg": b"x", "__MACOSX/000.jpg": b"x", ".git/a.png": b"x"}
    members |= {"4f/2a9c": image, "README": b"no image", "Thumbs.db": b"x"}
    tar = write_tar(tmp_path / "t.tar", members)
    assert [uri.partition("#")[2].partition("@")[0] for uri, _ in streamed(tar)] == ["./000.jpg", "4f/2a9c"]


def test_a_tar_without_an_image_says_what_is_in_it(tmp_path):
    tar = write_tar(tmp_path / "t.tar", {"a.cr2": b"II*", "b.cr2": b"II*", "c.json": b"{}", "._x.jpg": b""})
    ((uri, error),) = streamed(tar)
    assert (uri, str(error)) == (str(tar), "no images in it: its files are 2 .cr2, 1 .json")


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
    write_photographs(tmp_path, 2)  # a logo beside them hides nothing
    assert sorted(list_files(str(tmp_path)).table["images"].to_pylist()) == [UNKNOWN] * 3 + [1, 1, 4]
    assert list_images(str(tmp_path)).table.num_rows == 2 + 1 + 2 + 3 + 4
    assert list_files(str(tmp_path / "*.tar")).table.num_rows == 3


def write_addresses(path, names, column="url"):
    pq.write_table(pa.table({column: names, "caption": ["a caption"] * len(names)}), path)


def web(count: int) -> list[str]:
    return [f"http://images.example/{number}.jpg" for number in range(count)]


@pytest.mark.parametrize("end", ["", "/*", "/**"])
def test_a_folder_of_img2dataset_is_its_tars(tmp_path, end, capfd):
    for number in range(2):
        write_tar(tmp_path / f"{number:05d}.tar", samples(3))
        write_addresses(tmp_path / f"{number:05d}.parquet", web(4))
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    listing = list_files(f"{tmp_path}{end}")
    assert [uri.rpartition(".")[2] for uri in listing.table["uri"].to_pylist()] == ["tar", "tar"]
    described = "tables of addresses whose images lie beside them"
    assert listing.left_out == {described: 2, "other files": 2}
    assert (
        f"2 {described} (00000.parquet, 00001.parquet: named itself, a table is fetched)"
        in capfd.readouterr().err
    )
    assert list_files(str(tmp_path / "00000.parquet")).table["uri"].to_pylist() == web(4)
    assert list_files(str(tmp_path / "*.parquet")).table.num_rows == 8


def test_a_folder_of_img2dataset_with_files_is_its_images(tmp_path):
    images = write_photographs(tmp_path / "00000", 3)
    for image in images:
        image.with_suffix(".json").write_text("{}")
        image.with_suffix(".txt").write_text("a caption")
    write_addresses(tmp_path / "00000.parquet", web(4))
    (tmp_path / "00000_stats.json").write_text("{}")
    listing = list_files(str(tmp_path))
    assert sorted(listing.table["uri"].to_pylist()) == list(map(str, images))
    assert listing.left_out["tables of addresses whose images lie beside them"] == 1


def test_a_folder_of_img2dataset_with_tables_is_their_bytes(tmp_path):
    data = [encoded(photograph(n, 48)) for n in range(3)]
    pq.write_table(pa.table({"url": web(3), "jpg": data}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert list_files(str(tmp_path)).table["images"].to_pylist() == [3]


def test_tables_that_spark_wrote_are_a_folder_of_that_name(tmp_path):
    folder = tmp_path / "images.parquet"
    (folder / "day=1" / "_temporary").mkdir(parents=True)
    data = [encoded(photograph(n, 48)) for n in range(3)]
    pq.write_table(pa.table({"image": data}), folder / "day=1" / "part-00000.parquet")
    pq.write_table(pa.table({"image": data}), folder / "day=1" / "_temporary" / "part-00000.parquet")
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-00000.parquet.crc", "_committed_1", "_started_1"):
        (folder / name).write_bytes(b"")
    assert list_files(str(folder)).table["images"].to_pylist() == [3]
    assert list_files(f"{tmp_path}/**").table["images"].to_pylist() == [3]


def test_tables_beside_photographs(tmp_path):
    """Of addresses elsewhere they are read; of the files beside them once; without images they are left out."""
    images = write_photographs(tmp_path, 3)
    write_addresses(tmp_path / "more.parquet", web(2))
    write_addresses(tmp_path / "metadata.parquet", [image.name for image in images], "file_name")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    listing = list_files(str(tmp_path))
    torn = str(tmp_path / "torn.parquet")
    assert sorted(listing.table["uri"].to_pylist()) == sorted([*map(str, images), torn, *web(2)])
    assert listing.left_out == {"tables without images": 1}
    ((uri, error),) = streamed(torn)
    assert uri == torn
    assert "not a readable Parquet file" in str(error)
    assert torn in list_images(str(tmp_path)).table["uri"].to_pylist()
    with pytest.raises(OSError, match="not a readable Parquet file"):
        read_image_bytes(torn)
    for name in ("labels.parquet", "torn.parquet"):
        with pytest.raises(RecoError, match=name):
            list_files(str(tmp_path / name))


# --- lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "{0}\n# {1}\n\n{1}\n"),
        ("LIST.TXT", "{0}\r\n{1}"),
        ("list.csv", "{0}\n{1}\n"),
        ("list.csv", "label,URL\ndog,{0}\ncat,{1}\n,\n"),
        ("list.csv", 'image_path;label\n"{0}";dog\n{1};cat\n'),
        ("LIST.CSV", "url\n{0}\n{1}\n"),
        ("list.tsv", "path\tlabel\n{0}\tdog\n{1}\tcat\n"),
        ("list.jsonl", '{{"label": 1, "file_name": "{0}"}}\n\n"{1}"\n{{"file_name": null}}\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lists_in_the_forms_that_people_have(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.format("größe 1.jpg", "b.jpg").encode(encoding))
    uris = list_files(str(tmp_path / name)).table["uri"].to_pylist()
    assert uris == [f"{tmp_path}/größe 1.jpg", f"{tmp_path}/b.jpg"]


def test_commas_in_a_csv_of_one_column_belong_to_the_names(tmp_path):
    (tmp_path / "a.csv").write_text('url\nhttp://x/a,b.jpg\n"c,d.jpg"\n')
    uris = list_files(str(tmp_path / "a.csv")).table["uri"].to_pylist()
    assert uris == ["http://x/a,b.jpg", f"{tmp_path}/c,d.jpg"]


def test_a_number_sign_begins_a_comment_unless_a_file_is_called_so(tmp_path):
    for name in ("#1.jpg", "#nocomment", "a.jpg"):
        (tmp_path / name).write_bytes(encoded(photograph(1, 48)))
    lines = ["#1.jpg", "# 1.jpg", "#", "##", "#2.jpg", "#a.jpg", "#http://x/a.jpg", "a.jpg", "#nocomment"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    uris = list_files(str(tmp_path / "list.txt")).table["uri"].to_pylist()
    assert uris == [f"{tmp_path}/{name}" for name in ("#1.jpg", "a.jpg", "#nocomment")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.csv",
            "id,label\n1,dog\n",
            r"a\.csv: no column of images: it has id \(string\), label .*--image-column NAME",
        ),
        ("a.jsonl", '{"path": "a.jpg"}\n{', r"a\.jsonl: line 2: not JSON"),
        (
            "a.jsonl",
            '{"label": "dog"}',
            r"line 1: no column of images: it has label",
        ),
        ("a.jsonl", '{"image": {"bytes": 1}}', r"line 1: \{.* is no path or address: expected text"),
        ("a.tsv", "url\n\n", r"a\.tsv: no images here"),
        ("a.csv", "", r"a\.csv: no images here"),
    ],
)
def test_lists_that_name_nothing(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecoError, match=says):
        list_files(str(tmp_path / name))


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
