"""Findings of the doctor that need no Ray and no model."""

from pathlib import Path

import pytest

from reco_ray.doctor import _slow_imports


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
