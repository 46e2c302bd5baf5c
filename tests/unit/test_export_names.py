"""Paths of exported files: as the images are called, and never the same for two of them."""

import pytest

from reco_ray.mask_export.file_names import stems


@pytest.mark.parametrize(
    ("names", "flat", "expected"),
    [
        (["street/x.jpg", "y.JPEG", "z"], False, ["street/x", "y", "z"]),
        (["street/x.jpg", "street_x.png"], True, ["street_x.jpg", "street_x.png"]),
        (["x.jpg", "x.png", "y.jpg"], False, ["x.jpg", "x.png", "y"]),
        (["x.jpg", "X.JPG"], False, ["x.jpg~1", "X.JPG~2"]),
        (["x.jpg", "x.png", "x.jpg.jpg"], False, ["x.jpg~1", "x.png", "x.jpg.jpg~3"]),
        (
            ["a.tar/cat.jpg@512+9000", "t.parquet/17", "c.mp4/t=1.5"],
            False,
            ["a.tar/cat", "t.parquet/17", "c.mp4/t=1.5"],
        ),
        (
            ["a.tar/cat.jpg@512+9", "a.tar/cat.jpg@9216+9"],
            False,
            ["a.tar/cat.jpg@512+9", "a.tar/cat.jpg@9216+9"],
        ),
        (["фото 1.jpg", ".jpg", "a.b.jpg", "a.b/.png"], False, ["фото 1", ".jpg", "a.b", "a.b/.png"]),
    ],
)
def test_names(names: list[str], flat: bool, expected: list[str]) -> None:
    assert stems(names, flat) == expected


def test_a_number_that_is_taken_gets_another() -> None:
    names = ["x.jpg", "X.JPG", "x.jpg~1", "X.JPG~2.png"]
    found = stems(names, False)
    assert len({name.casefold() for name in found}) == 4
