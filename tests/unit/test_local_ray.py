"""Where a Ray that starts on this machine keeps its files: real folders, as another user than root where rights matter.

Root may write everywhere, and containers often run as somebody else: `as_somebody` drops the rights, for a process that
prints what it found. It keeps the right to read, as the Python of a test may lie in root's home.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reco_ray.distributed import local_ray
from reco_ray.distributed.local_ray import find_places
from reco_ray.errors import RecoError
from reco_ray.files.caches import cache_directory

SOMEBODY = "12345"
VARIABLES = ("TMPDIR", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
FIND = """
import dataclasses, json, sys
from reco_ray.errors import RecoError
from reco_ray.distributed.local_ray import find_places
try:
    print(json.dumps(dataclasses.asdict(find_places())))
except RecoError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, whose way anybody may go."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def as_somebody(*settings: str, mount: str = "") -> dict[str, object]:
    """What `find_places` finds as a user without a home or a name, after the mount commands.

    Skips the test where this user is not root.
    """
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root can become another user, with setpriv")
    rights = ["--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    user = ["setpriv", "--reuid", SOMEBODY, "--regid", SOMEBODY, *rights]
    python = ["env", "-i", f"PYTHONPATH={Path(local_ray.__file__).parents[2]}", "PYTHONDONTWRITEBYTECODE=1"]
    command = [*user, *python, *settings, sys.executable, "-c", FIND]
    if mount:
        command = ["unshare", "-m", "sh", "-ec", f'{mount}\nexec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if mount and "ermission denied" in done.stderr + done.stdout and not done.stdout.startswith("{"):
        pytest.skip("needs the right to mount")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_the_usual_places_need_no_warning(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    places = find_places()
    assert places.folder == f"{short}/ray"
    assert (places.token, places.notes) == (None, ())
    assert Path(places.folder).is_dir()


def test_a_path_too_long_for_sockets_is_left(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = short / ("y" * 60)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    places = find_places()
    assert len(places.folder) + len(local_ray._SOCKET) <= 107
    assert any(f"not in {folder}/ray: its path has" in warning for warning in places.warnings)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with pytest.raises(
        RecoError, match=rf"RAY_TMPDIR={folder}: .*its path has .*set RAY_TMPDIR to a shorter"
    ):
        find_places()


def test_the_longest_path_that_is_named_is_taken(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = local_ray._LONGEST_FOLDER - len("/ray")
    folder = short / ("y" * (longest - len(f"{short}/")))
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert find_places().folder == f"{folder}/ray"


def test_a_user_without_a_home_has_one_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # what Python makes of a user whom the system does not know
    assert str(cache_directory()) == "/.cache/reco-ray"


@pytest.mark.parametrize("home", ["/", "/nonexistent", "/proc", None])
def test_without_a_home_each_run_has_a_token(home: str | None) -> None:
    found = as_somebody(*([f"HOME={home}"] if home else []))
    assert len(str(found["token"])) == 64
    assert "no file for Ray's token" in str(found["notes"])


def test_a_token_that_is_there_is_kept(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_somebody("HOME=/", "RAY_AUTH_TOKEN=abc")["token"] is None
    assert as_somebody("HOME=/", "RAY_AUTH_MODE=disabled")["token"] is None
    (short / "token").write_text("abc")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(short / "token"))
    assert find_places().token is None
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(short / "none"))
    with pytest.raises(
        RecoError, match=r"RAY_AUTH_TOKEN_PATH=.*none: No such file or directory: name a file"
    ):
        find_places()


@pytest.mark.parametrize("kind", ["read-only", "missing", "another's ray", "full"])
def test_temporary_folders_that_cannot_be_used_are_left(short: Path, kind: str) -> None:
    (short / "t").mkdir()
    folder, mount = short / "t", ""
    if kind == "missing":
        folder = short / "none" / "t"
    elif kind == "another's ray":
        (folder / "ray").mkdir()
        folder.chmod(0o777)
    elif kind == "full":
        mount = f"mount -t tmpfs -o size=256k,mode=777 tmpfs {folder}"
    found = as_somebody(f"TMPDIR={folder}", mount=mount)
    assert found["folder"] in ("/tmp/ray", f"/tmp/ray-{SOMEBODY}", f"{folder}/ray-{SOMEBODY}")
    why = "No space left on device" if kind == "full" else "Permission denied"
    assert any(f"not in {folder}/ray: {why}" in warning for warning in list(found["warnings"]))  # type: ignore[call-overload]


def test_a_folder_that_another_user_made_in_our_name_is_not_trusted(short: Path) -> None:
    """In a folder that anybody may write, anybody may have made it."""
    (short / "t").mkdir()
    (short / "t" / "ray").mkdir()
    trap = short / "t" / f"ray-{SOMEBODY}"
    trap.mkdir()
    trap.chmod(0o777)
    assert as_somebody(f"TMPDIR={short}/t")["folder"] in ("/tmp/ray", f"/tmp/ray-{SOMEBODY}")


def test_nowhere_to_write_is_a_line_that_names_every_place(short: Path) -> None:
    read_only = "; ".join(f"mount -t tmpfs -o mode=755 tmpfs {place}" for place in ("/var/tmp", "/tmp"))
    python = Path(local_ray.__file__)
    if python.is_relative_to("/tmp") or Path(sys.prefix).is_relative_to("/tmp"):
        pytest.skip("the code lies below /tmp, which is hidden here")
    error = str(as_somebody(mount=read_only)["error"])
    assert "/tmp/ray: Permission denied" in error
    assert "set RAY_TMPDIR to a folder that can be written, with a path of at most" in error


def test_little_shared_memory_is_said(short: Path) -> None:
    found = as_somebody(mount="mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm")
    assert found["objects"] is None
    assert "/dev/shm has only 67 MB free: docker run --shm-size" in str(found["warnings"])
    found = as_somebody(mount="mount -t tmpfs -o mode=755 tmpfs /dev/shm")
    assert found["objects"] == found["folder"]
    assert "/dev/shm cannot be used (Permission denied)" in str(found["warnings"])
