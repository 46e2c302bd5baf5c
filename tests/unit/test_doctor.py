"""Findings of the doctor that need no Ray and no model."""

from pathlib import Path

import pytest

from reco_ray.cli.doctor import _caches, _places, _slow_imports


@pytest.mark.parametrize("there", [False, True])
def test_what_slows_every_process_of_ray_is_named_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    if there:
        metadata = tmp_path / "rfc3987_syntax-1.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rfc3987-syntax\nVersion: 1.1.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found = _slow_imports()
    assert [check.name for check in found] == ["rfc3987-syntax"] * there
    assert not any(check.needed for check in found)


def test_places_that_cannot_be_used_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file in a folder's place: root, too, cannot write there."""
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("RECO_CACHE", str(file))
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    (places,) = _places()
    assert (places.good, places.needed) == (False, True)
    assert (
        places.finding == "RAY_TMPDIR=/dev/null: Ray cannot keep its files in /dev/null/ray: Not a directory"
    )
    caches = _caches()
    assert (caches.good, caches.needed) == (False, False)
    assert f"{file} cannot be written (File exists): set RECO_CACHE to a folder that can" in caches.finding


def test_places_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECO_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert _places()[0].good
    assert str(tmp_path) in _caches().finding
