"""What reaches the terminal: paths as they are, where rejected rows lie, and of Ray's messages those to act on."""

import pytest

from reco_ray.cli.terminal import Terminal
from reco_ray.contents import EmbeddingsContent
from reco_ray.distributed.session import _MemoryWarnings
from reco_ray.files.artifacts import Manifest
from reco_ray.outcome import Outcome

OUT = "/photographs [2024]/:cat:/" + "x" * 120


@pytest.fixture
def lines(capsys):
    return lambda: capsys.readouterr().err.splitlines()


def test_paths_are_neither_broken_nor_read_as_markup(lines):
    content = EmbeddingsContent(dim=8, model="m", shards=1)
    manifest = Manifest(
        kind="embeddings", made_from={}, counts={"images": 1200, "rejected": 0}, content=content
    )
    Terminal().outcome(Outcome("embed", OUT, manifest))
    (line,) = lines()
    assert line.startswith("embed      1,200 images, 0 rejected ")
    assert line.endswith(f" {OUT}")


def test_what_was_rejected_is_said_with_where_to_read_it(lines):
    reasons = {"cannot be read": 2, "empty file": 1}
    content = EmbeddingsContent(dim=8, model="m", shards=1, rejected_by_reason=reasons)
    manifest = Manifest(kind="embeddings", made_from={}, counts={"rejected": 3}, content=content)
    Terminal().outcome(Outcome("embed", OUT, manifest))
    assert lines()[1:] == [f"rejected   2 cannot be read, 1 empty file   {OUT}/rejected"]
    Terminal().outcome(Outcome("embed", OUT, manifest, new=False))
    assert len(lines()) == 1


def test_raylets_messages_are_kept_off_the_terminal_unless_memory_is_short_and_then_shown_once(lines):
    show = _MemoryWarnings()
    show({"lines": ["WARNING: 8 PYTHON worker processes have been started on node: x"]})
    assert lines() == []
    killed = {"lines": ["2 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers\n\nmore"]}
    show(killed)
    (line,) = lines()
    assert line.startswith("Ray: 2 Workers (tasks / actors) killed due to memory pressure")
    show(killed)  # Ray says it of every worker, until memory is there again
    assert lines() == []
