"""Every form of a corpus is listed and read back byte by byte."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import write_photographs

from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.errors import RecoError
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched


@pytest.fixture
def files(tmp_path) -> list[Path]:
    return write_photographs(tmp_path / "photographs", 4, 48)


def contents(uri) -> list[bytes]:
    """What a listing's images hold, in an order that does not depend on their names."""
    return sorted(read_image_bytes(row) for row in list_images(str(uri)).table["uri"].to_pylist())


def bytes_of(files) -> list[bytes]:
    return sorted(file.read_bytes() for file in files)


# --- folders, globs, single files ---------------------------------------------------------------------------


def test_a_folder_is_listed_with_its_subfolders_and_without_other_files(files):
    folder = files[0].parent
    (folder / "deep" / "deeper").mkdir(parents=True)
    shutil.move(files[0], folder / "deep" / "deeper" / "MOVED.JPG")
    (folder / "notes.txt").write_text("no image")
    listing = list_images(str(folder))
    uris = listing.table["uri"].to_pylist()
    assert sorted(uris) == sorted(str(f) for f in folder.rglob("*") if f.suffix.lower() == ".jpg")
    assert listing.table["size"].to_pylist() == sorted(f.stat().st_size for f in map(Path, uris))
    assert listing.root == str(folder)
    assert contents(folder) == bytes_of(map(Path, uris))


def test_files_of_the_same_content_stand_side_by_side(files):
    copies = [file.with_name(f"zzz-{file.name}") for file in files]
    for file, copy in zip(files, copies, strict=True):
        shutil.copy(file, copy)
    read = [read_image_bytes(uri) for uri in list_images(str(files[0].parent)).table["uri"].to_pylist()]
    assert read[::2] == read[1::2]


def test_one_image(files):
    listing = list_images(str(files[2]))
    assert listing.table["uri"].to_pylist() == [str(files[2])]
    assert listing.root == str(files[2].parent)


def test_relative_paths_are_made_absolute(files, monkeypatch):
    monkeypatch.chdir(files[0].parent.parent)
    assert contents("photographs") == bytes_of(files)


def test_globs_stay_in_their_folder_unless_told(files):
    folder = files[0].parent
    (folder / "sub").mkdir()
    shutil.move(files[3], folder / "sub" / files[3].name)
    nested = folder / "sub" / files[3].name
    assert contents(folder / "*.jpg") == bytes_of(files[:3])
    assert contents(folder / "00[12].jpg") == bytes_of(files[1:3])
    assert contents(folder / "00[!12].jpg") == bytes_of(files[:1])
    assert contents(folder / "00?.jpg") == bytes_of(files[:3])
    assert contents(folder / "*" / "*.jpg") == bytes_of([nested])
    assert contents(folder / "**" / "*.jpg") == bytes_of([*files[:3], nested])
    assert contents(folder.parent / "photo*" / "sub" / "*") == bytes_of([nested])
    with pytest.raises(RecoError, match="no images here"):
        list_images(str(folder / "*.png"))


NAMES = [
    "with space.jpg",
    "with#hash.jpg",
    "100%25.jpg",
    "ünïcödé-фото-写真.jpg",
    "a+b&c='d'.jpg",
    "[1] (copy).jpg",
]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_names_may_hold_anything(tmp_path, files, scheme):
    folder = f"{scheme}{tmp_path}/my corpus [2024] #1"
    for number, name in enumerate(NAMES):
        storage.write_bytes(f"{folder}/{name}", files[0].read_bytes() + bytes(number))
    read = contents(folder)
    assert read == sorted(files[0].read_bytes() + bytes(number) for number in range(len(NAMES)))


# --- list files ---------------------------------------------------------------------------------------------


def test_list_files_hold_relative_and_absolute_paths_and_comments(files):
    folder = files[0].parent
    elsewhere = folder.parent / "elsewhere.jpg"
    shutil.move(files[1], elsewhere)
    lines = ["\ufeff# a comment", files[0].name, "", f"  {elsewhere}  ", "missing.jpg", "../elsewhere.jpg"]
    (folder / "list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    listing = list_images(str(folder / "list.txt"))
    uris = listing.table["uri"].to_pylist()
    assert uris == [str(files[0]), str(elsewhere), f"{folder}/missing.jpg", f"{folder}/../elsewhere.jpg"]
    assert set(listing.table["size"].to_pylist()) == {-1}
    assert read_image_bytes(uris[0]) == files[0].read_bytes()
    assert read_image_bytes(uris[1]) == read_image_bytes(uris[3]) == elsewhere.read_bytes()
    with pytest.raises(FileNotFoundError):
        read_image_bytes(uris[2])


def test_unreadable_list_files_are_named(tmp_path):
    with pytest.raises(RecoError, match=r"nothing\.txt: the list of images cannot be read: No such file"):
        list_images(str(tmp_path / "nothing.txt"))
    (tmp_path / "latin.txt").write_bytes(b"b\xe4r.jpg")
    with pytest.raises(RecoError, match=r"latin\.txt: the list of images cannot be read"):
        list_images(str(tmp_path / "latin.txt"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(RecoError, match=r"empty\.txt: no images here"):
        list_images(str(tmp_path / "empty.txt"))


# --- Parquet ------------------------------------------------------------------------------------------------


def binary_table(files):
    return pa.table({"label": list(range(len(files))), "image": [file.read_bytes() for file in files]})


def hugging_face_table(files):
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    return pa.table({"image": pa.array(rows), "label": list(range(len(files)))})


@pytest.mark.parametrize("table_of", [binary_table, hugging_face_table])
@pytest.mark.parametrize("rows_a_group", [1, 3, 100])
def test_parquet_with_bytes(tmp_path, files, table_of, rows_a_group):
    uri = tmp_path / "t.parquet"
    pq.write_table(table_of(files), uri, row_group_size=rows_a_group)
    uris = list_images(str(uri)).table["uri"].to_pylist()
    assert [read_image_bytes(row) for row in uris] == [file.read_bytes() for file in files]
    assert list(prefetched(read_image_bytes, uris)) == [file.read_bytes() for file in files]


def test_rows_of_a_table_keep_their_order_so_that_row_groups_are_read_once(tmp_path, files):
    uri = tmp_path / "t.parquet"
    pq.write_table(pa.table({"bytes": [b"%d" % n for n in range(120)]}), uri, row_group_size=10)
    read = [read_image_bytes(row) for row in list_images(str(uri)).table["uri"].to_pylist()]
    assert read == [b"%d" % n for n in range(120)]


@pytest.mark.parametrize("column", ["uri", "url", "path", "file_name"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_with_uris(files, column, kind):
    uri = files[0].parent / "t.parquet"
    names = [files[0].name, str(files[1]), f"file://{files[2]}"]
    pq.write_table(pa.table({column: pa.array(names, kind)}), uri)
    assert contents(uri) == bytes_of(files[:3])


def test_a_folder_and_a_glob_of_parquet(tmp_path, files):
    folder = tmp_path / "data" / "split=train"
    folder.mkdir(parents=True)
    pq.write_table(binary_table(files[:2]), folder / "train-0.parquet")
    pq.write_table(hugging_face_table(files[2:]), folder / "train-1.parquet")
    assert contents(tmp_path / "data") == bytes_of(files)
    assert contents(folder / "train-*.parquet") == bytes_of(files)
    assert contents(folder / "train-1.*") == bytes_of(files[2:])


def test_tables_without_images_are_named(tmp_path):
    uri = tmp_path / "t.parquet"
    pq.write_table(pa.table({"label": [1], "image": [3.5]}), uri)
    with pytest.raises(RecoError, match=r"t\.parquet: no column of images: it has label \(int64\), image"):
        list_images(str(uri))
    pq.write_table(pa.table({"bytes": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    with pytest.raises(RecoError, match="no images here"):
        list_images(str(tmp_path / "empty.parquet"))
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(RecoError, match=r"text\.parquet: not a readable Parquet file"):
        list_images(str(tmp_path / "text.parquet"))
    with pytest.raises(RecoError, match=r"gone\.parquet: no such file or folder"):
        list_images(str(tmp_path / "gone.parquet"))


def test_a_damaged_row_group_costs_its_rows_only(tmp_path, files):
    uri = tmp_path / "t.parquet"
    pq.write_table(binary_table(files), uri, row_group_size=1, compression="zstd")
    place = pq.ParquetFile(uri).metadata.row_group(1).column(1).data_page_offset
    data = bytearray(uri.read_bytes())
    data[place : place + 200] = bytes(200)
    uri.write_bytes(data)
    uris = list_images(str(uri)).table["uri"].to_pylist()
    with pytest.raises(OSError, match=r".+"):
        read_image_bytes(uris[1])
    assert read_image_bytes(uris[2]) == files[2].read_bytes()


def test_rows_that_do_not_exist_are_an_os_error(tmp_path, files):
    uri = tmp_path / "t.parquet"
    pq.write_table(binary_table(files), uri)
    for row in ("4", "x"):
        with pytest.raises(OSError, match=r".+"):
            read_image_bytes(f"{uri}#{row}")


# --- nothing there, fingerprints, threads -------------------------------------------------------------------


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(RecoError, match="nowhere: no such file or folder"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(RecoError, match=r"nothing\.jpg: no such file or folder"):
        list_images(str(tmp_path / "nothing.jpg"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecoError, match=r"folder: no images here \(looked for \.jpg "):
        list_images(str(tmp_path / "folder"))
    (tmp_path / "folder" / "notes.md").write_text("no image")
    with pytest.raises(RecoError, match="no images here"):
        list_images(str(tmp_path / "folder"))
    with pytest.raises(RecoError, match="no such file or folder"):
        list_images(str(tmp_path / "nowhere" / "*.jpg"))


def test_the_fingerprint_changes_with_the_files(files):
    folder = files[0].parent
    seen = [list_images(str(folder)).fingerprint]
    assert list_images(str(folder)).fingerprint == seen[0]
    shutil.copy(files[0], folder / "new.jpg")
    seen.append(list_images(str(folder)).fingerprint)
    files[1].write_bytes(files[1].read_bytes() + b"\0")
    seen.append(list_images(str(folder)).fingerprint)
    (folder / "new.jpg").rename(folder / "newer.jpg")
    seen.append(list_images(str(folder)).fingerprint)
    assert len(set(seen)) == 4


def test_prefetching_keeps_the_order_and_stays_bounded():
    started = []

    def work(number):
        started.append(number)
        return number * number

    results = prefetched(work, range(1000), threads=4, ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert max(started) <= 3 + 8
    assert list(results) == [n * n for n in range(3, 1000)]


def test_prefetching_raises_where_it_failed():
    def work(number):
        if number == 3:
            raise OSError("three")
        return number

    results = prefetched(work, range(6), threads=2, ahead=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(results)


def test_the_case_of_a_container_s_suffix_does_not_matter(tmp_path):
    pq.write_table(pa.table({"bytes": [b"one", b"two"]}), tmp_path / "TABLE.PARQUET")
    uris = list_images(str(tmp_path)).table["uri"].to_pylist()
    assert uris == [f"{tmp_path}/TABLE.PARQUET#0", f"{tmp_path}/TABLE.PARQUET#1"]
    assert read_image_bytes(uris[1]) == b"two"
