"""The tutorial, command by command as it stands there, on few and small photographs."""

from pathlib import Path

import pytest
from documents import DOCS, Block, blocks, commands
from images import write_photographs

from reco_ray.cli import main

TUTORIAL = list(blocks(DOCS / "tutorial.md"))
# In place of the reader's: everything as small as it goes.
SETTINGS = """
references: {exemplars: 2, image_size: 96}
segment: {image_size: 96}
train: {steps: 2, image_size: 64, crop: 64, batch_size: 2, checkpoint_every: 2}
"""

pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process"), pytest.mark.timeout(280)]


def test_the_tutorial_leads_to_a_segmenter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", 8)
    write_photographs(tmp_path / "photos" / "new", 1)
    for block in TUTORIAL:
        _follow(block)
    assert (tmp_path / "first" / "report" / "index.html").stat().st_size > 1000
    assert list((tmp_path / "second" / "references" / "sheets").iterdir())
    assert [f.name for f in (tmp_path / "second" / "masks" / "overlays").iterdir()] == ["000.jpg.jpg"]
    assert (tmp_path / "look" / "index.html").stat().st_size > 1000
    assert "['cat', 'dog', 'bird'] (" in capsys.readouterr().out
    assert "files" in _verified(tmp_path, capsys)


def _follow(block: Block) -> None:
    if block.title:
        Path(block.title).write_text(SETTINGS if block.title == "settings.yaml" else block.text)
    elif block.language == "bash":
        for call in commands(block.text):
            main(call)
    elif block.language == "python":
        exec(compile(block.text, "tutorial.md", "exec"), {})


def _verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Every artifact that the tutorial made is as it was committed."""
    made = sorted(str(manifest.parent) for manifest in folder.rglob("manifest.json"))
    # first: 4, second: 2, copies, distinct, trained: frames, references, labels, segmenter; third: masks
    assert len(made) == 13
    main(["verify", *made])
    return capsys.readouterr().out
