"""A job takes the same options as the command of its name."""

import runpy
import sys
from pathlib import Path

import pytest

from reco_ray.cli import main

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.py"))


def test_every_stage_has_a_job() -> None:
    stages = {
        "embed",
        "index",
        "search",
        "references",
        "segment",
        "label",
        "train",
        "export",
        "export_masks",
        "pipeline",
        "run",
        "evaluate",
    }
    assert stages <= {job.stem for job in JOBS}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_is_its_command(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main([job.stem.replace("_", "-"), "--help"])
    command = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(sys, "argv", [str(job), "--help"])
    runpy.run_path(str(job), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert any("--out" in line for line in printed)
    # The first line names the program, which differs.
    assert [line for line in printed if "Usage" not in line] == [
        line for line in command if "Usage" not in line
    ]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_exits_with_2_on_wrong_usage(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(job), "--no-such-option"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(job), run_name="__main__")
    assert exit_.value.code == 2
