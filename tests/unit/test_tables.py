"""Tables of images as other tools write them: which column is read, what its rows may be."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import write_photographs

from reco_ray.corpus.columns import Column, find_column
from reco_ray.corpus.generations import pending_units, record_generation
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.load_parts import LoadParts
from reco_ray.corpus.read import list_images, read_image_bytes, read_members
from reco_ray.errors import RecoError
from reco_ray.requests import EmbedRequest


@pytest.fixture
def files(tmp_path):
    return write_photographs(tmp_path, 3)


def write(file, /, **columns):
    pq.write_table(pa.table(columns), file)
    return str(file)


def listed(uri, image_column=None):
    return list_images(uri, image_column=image_column).table["uri"].to_pylist()


def contents(uri, image_column=None):
    """What the addresses of a table give, which is what its stream gives."""
    addresses = listed(uri, image_column)
    read = [read_image_bytes(address) for address in addresses]
    if list_files(uri, image_column).table["uri"].to_pylist() == [uri]:
        assert list(read_members(uri, -1, 1.0, image_column)) == list(zip(addresses, read, strict=True))
    return read


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        *("image_bytes", "img", "jpg", "png", "webp", "content", "Image", "IMG", "imageBytes", "image.bytes"),
        *("Bytes", "picture", "photo of the day"),
    ],
)
def test_columns_of_encoded_images(tmp_path, files, column):
    data = [file.read_bytes() for file in files]
    noise = random.Random(0).randbytes
    table = {
        "caption": ["a"] * 3,
        "sha": pa.array([noise(32)] * 3, pa.binary(32)),
        column: data,
        "width": [1, 2, 3],
    }
    assert contents(write(tmp_path / "t.parquet", **table)) == data


@pytest.mark.parametrize(
    "column",
    [
        *(
            "URL",
            "image_url",
            "image_path",
            "file_name",
            "filepath",
            "Image URL",
            "imagePath",
            "filename",
            "PATH",
        ),
        *("image", "img", "file", "image-url"),
    ],
)
def test_columns_of_paths(tmp_path, files, column):
    names = [files[0].name, str(files[1]), f"file://{files[2]}"]
    uri = write(tmp_path / "t.parquet", caption=["a"] * 3, **{column: names})
    assert contents(uri) == [file.read_bytes() for file in files]


def test_encoded_images_are_preferred_to_addresses(tmp_path, files):
    """What img2dataset and Spark write has both."""
    data = [file.read_bytes() for file in files]
    addresses = ["http://127.0.0.1:9/x.jpg"] * 3
    assert contents(write(tmp_path / "i.parquet", url=addresses, key=["0"] * 3, jpg=data)) == data
    assert contents(write(tmp_path / "s.parquet", path=addresses, length=[1] * 3, content=data)) == data


def test_a_column_may_be_named(tmp_path, files):
    data = [file.read_bytes() for file in files]
    uri = write(tmp_path / "t.parquet", url=["x"] * 3, thumb=data, **{"full size #1": data[::-1]})
    for column, expected in (("thumb", data), ("full size #1", data[::-1])):
        assert contents(uri, column) == expected
        assert listed(uri, column)[1] == f"{uri}#1@{column}"
    names = write(tmp_path / "n.parquet", where=[file.name for file in files], other=["x"] * 3)
    assert contents(names, "where") == data
    with pytest.raises(
        RecoError, match=r"t\.parquet: there is no column 'nothing': it has url \(string\), thumb \("
    ):
        list_files(uri, "nothing")


def test_the_option_and_the_setting_are_the_same():
    for name in ("full size #1", "no", "7"):
        request = EmbedRequest(corpus="c", out="o", image_column=name)
        assert request.load_settings().image_column == name
    request = EmbedRequest(corpus="c", out="o", set=["image_column=photo"])
    assert request.load_settings().image_column == "photo"


def test_a_named_column_reaches_the_loaders(tmp_path, files):
    data = [file.read_bytes() for file in files]
    uri = write(tmp_path / "t.parquet", first=data, second=data[::-1])
    out = str(tmp_path / "out")
    found = list_files(uri, "second")
    generations = [record_generation(out, found, found.table, [], 2)]
    load = LoadParts(
        out,
        generations,
        np.asarray,
        short_side=32,
        max_pixels=10**6,
        part_size=2,
        frames_per_second=1,
        image_column="second",
    )
    rows = [
        row
        for unit in pending_units(generations, [], 2)
        for _, part in load(unit)
        for row in part.to_pylist()
    ]
    assert [row["reason"] for row in rows] == [None] * 3
    assert [read_image_bytes(row["uri"]) for row in rows] == data[::-1]


# --- types ---------------------------------------------------------------------------------------------------

BYTES_TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.dictionary(pa.int8(), pa.large_binary()),
]
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.binary(),  # some writers do not say that it is text
]


@pytest.mark.parametrize("kind", BYTES_TYPES, ids=str)
def test_types_of_encoded_images(tmp_path, files, kind):
    data = [file.read_bytes() for file in files]
    plain = pa.array(data, pa.binary())
    column = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    assert contents(write(tmp_path / "t.parquet", image=column)) == data


def test_images_of_one_size(tmp_path):
    """As uncompressed ones are: fixed-size binary."""
    data = [bytes([number]) * 50 for number in range(3)]
    assert contents(write(tmp_path / "t.parquet", image=pa.array(data, pa.binary(50)))) == data


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_types_of_paths(tmp_path, files, kind):
    plain = pa.array([file.name for file in files])
    column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    assert contents(write(tmp_path / "t.parquet", url=column)) == [file.read_bytes() for file in files]


@pytest.mark.parametrize("named", [None, "image"])
def test_lists_and_numbers_are_refused_with_their_types(tmp_path, files, named):
    data = [[file.read_bytes()] for file in files]
    uri = write(tmp_path / "t.parquet", image=data, label=[1.5] * 3)
    match = (
        r"image \(list<.*binary>\), label \(double\); --image-column"
        if named is None
        else r"'image' is of type list<"
    )
    with pytest.raises(RecoError, match=match) as caught:
        list_files(uri, named)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_ambiguous_is_left_to_the_user(tmp_path):
    for schema in (
        pa.schema([("left", pa.binary()), ("right", pa.binary())]),
        pa.schema([("caption", pa.string())]),
        pa.schema([("hash", pa.binary(16))]),
        pa.schema([]),
    ):
        with pytest.raises(RecoError, match=r"no column of images: it has .*--image-column NAME"):
            find_column(schema)
    wide = pa.schema([(f"c{number}", pa.int8()) for number in range(100)])
    with pytest.raises(RecoError, match=r"c29 \(int8\), 70 more; --image-column"):
        find_column(wide)
    both = pa.schema([("image", pa.binary()), ("Image", pa.string())])
    assert find_column(both) == Column("image", "bytes")
    assert find_column(both, "Image") == Column("Image", "uri")


# --- Hugging Face's {bytes, path} -----------------------------------------------------------------------------

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("column", ["image", "picture of it"])
def test_bytes_and_paths_row_by_row(tmp_path, files, column):
    rows = [
        {"bytes": files[0].read_bytes(), "path": "elsewhere.jpg"},
        {"bytes": None, "path": files[1].name},
        {"bytes": None, "path": str(files[2])},
    ]
    uri = write(tmp_path / "t.parquet", **{column: pa.array(rows, STRUCT)})
    assert contents(uri) == [file.read_bytes() for file in files]
    assert listed(uri) == [f"{uri}#{row}" for row in range(3)]


def test_a_struct_of_nothing_but_paths_names_images_elsewhere(tmp_path, files):
    rows = [{"bytes": None, "path": file.name} for file in files]
    for kind in (STRUCT, pa.struct([("path", pa.string())])):
        uri = write(tmp_path / "t.parquet", image=pa.array(rows, kind))
        assert listed(uri) == [str(file) for file in files]


# --- rows without an image ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x", None], pa.binary()),
        pa.array([{"bytes": b"x", "path": None}, None], STRUCT),
        pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": None}], STRUCT),
        pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": ""}], STRUCT),
        pa.array([b"x", None]).dictionary_encode(),
    ],
)
def test_a_row_without_an_image_is_said_to_be_null(tmp_path, column):
    uri = write(tmp_path / "t.parquet", image=column)
    (first, data), (second, error) = read_members(uri, -1, 1.0)
    assert (first, data, second) == (f"{uri}#0", b"x", f"{uri}#1")
    assert str(error) == "null: this row of the table holds no image"
    with pytest.raises(OSError, match=r"^null: this row"):
        read_image_bytes(second)


def test_a_row_without_an_address_is_listed_and_said_to_be_null(tmp_path, files):
    for number, (column, empty) in enumerate([("url", None), ("url", " "), ("where", None)]):
        named = None if column == "url" else column
        uri = write(tmp_path / f"{number}.parquet", **{column: [files[0].name, empty, files[1].name]})
        first, second, third = listed(uri, named)
        assert (first, third) == (str(files[0]), str(files[1]))
        with pytest.raises(OSError, match=r"^null: this row"):
            read_image_bytes(second)


def test_a_missing_file_costs_its_row_only(tmp_path, files):
    rows = [{"bytes": None, "path": "gone.jpg"}, {"bytes": files[0].read_bytes(), "path": None}]
    uri = write(tmp_path / "t.parquet", image=pa.array(rows, STRUCT))
    (_, error), (_, data) = read_members(uri, -1, 1.0)
    assert "No such file" in str(error)
    assert data == files[0].read_bytes()


def test_tables_without_rows(tmp_path, files):
    for name, column in (("bytes", pa.array([], pa.binary())), ("url", pa.array([], pa.string()))):
        with pytest.raises(RecoError, match="no images here"):
            list_files(write(tmp_path / "t.parquet", **{name: column}))
    (tmp_path / "tables").mkdir()
    write(tmp_path / "tables" / "empty.parquet", image=pa.array([], STRUCT))
    write(tmp_path / "tables" / "full.parquet", image=[file.read_bytes() for file in files])
    assert len(listed(str(tmp_path / "tables"))) == 3
