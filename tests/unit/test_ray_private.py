"""What is used of Ray beyond its public interface stands in one file, and is done without where it is missing."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray._private.worker as ray_worker
from ray._private import auto_init_hook
from ray.data import DataContext

from reco_ray.distributed import ray_private

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._(?!_version)|\bray\S* import _|(?<!ray)_private\b|__serve_multiplex"
    r"|[\"' ]_(temp|plasma)_dir"
)


@pytest.fixture(autouse=True)
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said."""
    lines: list[str] = []
    monkeypatch.setattr(ray_private, "_lost", set())
    monkeypatch.setattr(ray_private.console, "print", lines.append)
    return lines


@pytest.fixture(params=["another version", "the part is gone"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way to have none of the parts."""
    if request.param == "another version":
        monkeypatch.setattr(ray, "__version__", "2.99.0")
        return
    monkeypatch.delattr(ray_worker, "print_to_stdstream")
    monkeypatch.delattr(auto_init_hook, "enable_auto_connect")
    monkeypatch.setitem(__import__("sys").modules, "ray.data._internal.execution.execution_callback", None)


def test_no_other_file_uses_private_parts() -> None:
    folders = ("reco_ray", "jobs", "serve", "cluster", "benchmarks", "docs")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    found = {
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        if file.name != "ray_private.py"
        for line in file.read_text().splitlines()
        if PRIVATE.search(line)
    }
    assert found == set()
    text = (ROOT / "reco_ray" / "distributed" / "ray_private.py").read_text()
    assert len(PRIVATE.findall(text)) > 4  # it would be found


def test_with_the_version_that_was_tried_everything_is_there(
    monkeypatch: pytest.MonkeyPatch, printed: list[str]
) -> None:
    assert ray.__version__.startswith(ray_private.TRIED)
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)

    def printer(data: dict[str, Any], ignore_prefix: bool) -> None: ...

    ray_private.print_ray_messages_with(printer)
    assert ray_worker.print_to_stdstream is printer
    ray_private.forbid_new_session()
    assert auto_init_hook.enable_auto_connect is False
    context = DataContext()
    ray_private.slow_down_scheduler(context, 0.0)
    (pause,) = context.custom_execution_callback_classes
    pause().on_execution_step(None)
    assert printed == []


@pytest.mark.usefixtures("missing")
def test_what_is_lost_is_said_once(printed: list[str]) -> None:
    context = DataContext()
    for _ in range(2):
        ray_private.print_ray_messages_with(print)
        ray_private.forbid_new_session()
        ray_private.slow_down_scheduler(context, 0.0)
        asyncio.run(ray_private.unload_multiplexed(object(), "street"))
    assert context.custom_execution_callback_classes == []
    assert [re.sub(r"^warning    Ray \S+ differs .*\(2\.60\.x\): ", "", line) for line in printed] == [
        "its messages may stand between these lines",
        "what stands still may start another Ray as this run ends",
        "its scheduler takes half a core of the process that starts the run",
        "requests for segmenters that were unloaded are not sent elsewhere",
    ]


def test_folders_that_ray_takes_no_more_are_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        asked.append(options)
        if "_temp_dir" in options:
            raise RuntimeError("Unknown keyword argument(s): _temp_dir")

    monkeypatch.setattr(ray, "init", init)
    assert not ray_private.init({"temp_dir": "/tmp/ray-1"}, address="local")
    assert asked == [{"address": "local", "_temp_dir": "/tmp/ray-1"}, {"address": "local"}]

    def fail(**_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        ray_private.init({"temp_dir": "/tmp/ray-1"}, address="local")


def test_the_model_that_is_named_is_unloaded() -> None:
    models = {"street": 1, "lane": 2}
    calls: list[str] = []

    class Models(dict[str, int]):
        def move_to_end(self, name: str, last: bool) -> None:
            calls.append(f"{name} {last}")

    async def unload_model_lru() -> None:
        calls.append("unloaded")

    owner = SimpleNamespace(
        **{
            "__serve_multiplex_wrapper": SimpleNamespace(
                models=Models(models), unload_model_lru=unload_model_lru
            )
        }
    )
    asyncio.run(ray_private.unload_multiplexed(owner, "lane"))
    asyncio.run(ray_private.unload_multiplexed(owner, "nobody's"))
    assert calls == ["lane False", "unloaded"]
