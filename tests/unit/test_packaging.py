"""What is released: wheel, source distribution, bill of materials; and the checks before a commit."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from documents import ROOT

from reco_ray import __version__

NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "reco-demo"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, built as `make dist` does, from a copy: stale files of the checkout must not get in."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCES)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")],
        cwd=folder / "source",
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "dist"


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"reco_ray-{__version__}-py3-none-any.whl") as wheel:
        held = set(wheel.namelist())
        metadata = wheel.read(f"reco_ray-{__version__}.dist-info/METADATA").decode()
    information = {name for name in held if name.startswith(f"reco_ray-{__version__}.dist-info/")}
    package = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "reco_ray").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert held - information == package, "name the suffix under package-data in pyproject.toml"
    assert {"presets/mini.yaml", "templates/report.html", "evaluation/benchmarks/voc20.yaml"} <= {
        name.removeprefix("reco_ray/") for name in held
    }
    assert f"reco_ray-{__version__}.dist-info/licenses/LICENSE" in information
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_the_source_distribution_makes_the_same_package(dist: Path) -> None:
    with tarfile.open(dist / f"reco_ray-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "reco_ray/presets/mini.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_version_is_named_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    unreleased = changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert __version__ in released or __version__ in unreleased


SBOM = Path(sys.prefix, "sbom", "bin", "cyclonedx-py")


@pytest.mark.skipif(
    not SBOM.exists(), reason="make test installs cyclonedx-py into an environment of its own"
)
def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    file = tmp_path / "bill.json"
    arguments = [
        "environment",
        "--pyproject",
        str(ROOT / "pyproject.toml"),
        "--output-reproducible",
        "--no-validate",
    ]
    subprocess.run([SBOM, *arguments, "-o", file, sys.prefix], check=True, capture_output=True)
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "reco-ray"
    components = {component["name"]: component for component in bill["components"]}
    for name in ("torch", "ray", "pyarrow"):
        assert components[name]["version"]
        assert components[name]["purl"].startswith(f"pkg:pypi/{name}@")


def test_the_checks_before_a_commit_are_those_of_the_suite() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    recipe = makefile.partition("\ntest:")[2].partition("\n\n")[0].splitlines()[1:]
    assert [f"\t{hook['entry']}" for hook in hooks] == recipe[:-1]
    assert recipe[-1].endswith("-m pytest")
