"""The main job with a Ray that lacks what `ray_private.py` uses of it, in driver and workers alike.

Python itself hides the parts: it runs `sitecustomize` of the first folder of its path in every process. Ray's own
modules still see them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import BIN, ROOT
from images import write_photographs

HIDE = '''
import importlib.util
import sys
import types

PARTS = {parts!r}


def hide(module, name):
    class Without(types.ModuleType):
        def __getattribute__(self, asked):
            caller = sys._getframe().f_back  # None: Ray's C code
            importer = caller.f_globals.get("__name__", "") if caller else ""
            if asked == name and importer.partition(".")[0] == "reco_ray":
                raise AttributeError(f"no {{name}} here")
            return super().__getattribute__(asked)

    module.__class__ = Without


def change(module):
    if module.__name__ != "ray":
        hide(module, PARTS[module.__name__])
    elif PARTS["ray"] == "__version__":
        module.__version__ = "2.99.0"
    else:
        init = module.init

        def without(*values, **options):
            if PARTS["ray"] in options:
                raise RuntimeError(f"Unknown keyword argument(s): {{PARTS['ray']}}")
            return init(*values, **options)

        module.init = without


class Finder:
    """Changes the modules of PARTS as soon as they are executed."""

    busy = False

    def find_spec(self, name, path=None, target=None):
        if self.busy or name not in PARTS:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change
        return spec


sys.meta_path.insert(0, Finder())
'''
PRINTER = {"ray._private.worker": "print_to_stdstream"}
AUTO_INIT = {"ray._private.auto_init_hook": "enable_auto_connect"}
CALLBACK = {"ray.data._internal.execution.execution_callback": "ExecutionCallback"}
FOLDER = {"ray": "_temp_dir"}
SAID = {
    "ray._private.worker": "its messages may stand between these lines",
    "ray.data._internal.execution.execution_callback": "its scheduler takes half a core",
    "_temp_dir": "it keeps its files where it likes",
}


@pytest.mark.timeout(290)
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(PRINTER | AUTO_INIT | CALLBACK | FOLDER, id="all"),
        *(
            pytest.param(parts, id="-".join(parts.values()), marks=pytest.mark.chaos)
            for parts in (PRINTER, AUTO_INIT, CALLBACK, FOLDER, {"ray": "__version__"})
        ),
    ],
)
def test_the_main_job_runs_without(parts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(HIDE.format(parts=parts))
    write_photographs(tmp_path / "photos", 8, long_side=96)
    places = ["--corpus", "photos", "--images", "photos/000.jpg", "--out", "out"]
    small = ["--exemplars", "2", "--set", "references.image_size=96", "--set", "segment.image_size=96"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (tmp_path / "path", ROOT)))
    done = subprocess.run(
        [sys.executable, str(BIN / "reco-ray"), "run", *places, "--concepts", "dog, car", *small],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "masks" / "manifest.json").read_text())
    assert manifest["counts"]["segmented"] == 1
    for said in [SAID[key] for key in [*parts, *parts.values()] if key in SAID]:
        assert done.stderr.count(said) == 1, done.stderr
    if parts == {"ray": "__version__"}:
        assert "Ray 2.99.0 differs from what reco-ray was tried with (2.60.x)" in done.stderr
