"""Keys: made, kept as hashes, read again; buckets that limit how fast they are used."""

import hashlib
from pathlib import Path

import pytest

from reco_ray.cli import main
from reco_ray.errors import RecoError, UsageError
from reco_ray.serving.keys import KeyRing, new_key
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.rate_limit import TokenBucket
from reco_ray.serving.server import require_keys


def test_a_key_admits_its_owner_and_is_not_in_the_file(tmp_path: Path) -> None:
    key, line = new_key("anna")
    file = tmp_path / "keys"
    file.write_text(f"# who may call\n\n{line}  # laptop\n")
    ring = KeyRing(str(file))
    assert ring.owner_of(key) == "anna"
    assert ring.owner_of(key[:-1]) is None
    assert ring.owner_of("") is None
    assert ring.owner_of("\udcff") is None  # a header that is not UTF-8
    assert key not in file.read_text()
    assert line == f"anna {hashlib.sha256(key.encode()).hexdigest()}"


def test_keys_are_random() -> None:
    assert len({new_key("anna")[0] for _ in range(100)}) == 100


@pytest.mark.parametrize("name", ["", "..", "a/b", "Anna", "a b", "-a", "a" * 64, "a\n"])
def test_names_that_could_leave_a_folder_are_refused(name: str) -> None:
    with pytest.raises(RecoError, match="key's name"):
        new_key(name)


def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(tmp_path: Path) -> None:
    (first, first_line), (second, second_line) = new_key("anna"), new_key("ben")
    file = tmp_path / "keys"
    file.write_text(first_line)
    ring = KeyRing(str(file))
    file.write_text(second_line)
    ring.read_again()
    assert (ring.owner_of(first), ring.owner_of(second)) == (None, "ben")
    file.write_text("half a li")
    ring.read_again()
    assert ring.owner_of(second) == "ben"


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no key in it"), ("anna", "line 1"), ("# x\nanna abc", "line 2"), ("../x " + 64 * "0", "line 1")],
)
def test_a_file_without_usable_keys_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(RecoError, match=message):
        KeyRing(str(file))
    with pytest.raises(RecoError, match="cannot be read"):
        KeyRing(str(tmp_path / "none"))


def test_a_bucket_gives_its_burst_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("reco_ray.serving.keys.time.monotonic", lambda: now)
    bucket = TokenBucket(rate=2.0, burst=3)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now = 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now = 100.0
    assert bucket.take(10) == 0  # more than a burst at once: paid for afterwards
    assert bucket.take() == pytest.approx(4.0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_beyond_loopback_a_server_needs_keys(host: str) -> None:
    with pytest.raises(UsageError, match="keys are needed"):
        require_keys(host, ServeOptions())
    require_keys(host, ServeOptions(keys="file"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_it_does_not(host: str) -> None:
    require_keys(host, ServeOptions())


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("serve --host 0.0.0.0", 2, "keys are needed"),
        ("serve --segmenter street", 2, "expected NAME=URI"),
        ("serve --segmenter a=x --segmenter a=y", 2, "given twice"),
        ("serve --set limits.pixels=-1", 1, "--set pixels"),
        ("serve --set limits.none=1", 1, "--set none"),
        ("serve --set references.none=1", 1, "references.none"),
        ("serve-key ../anna", 1, "key's name"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == status
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_key_made_on_the_command_line_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["serve-key", "anna"])
    key, line = (each.partition(" ")[2].strip() for each in capsys.readouterr().out.splitlines())
    (tmp_path / "keys").write_text(line)
    assert KeyRing(str(tmp_path / "keys")).owner_of(key) == "anna"
