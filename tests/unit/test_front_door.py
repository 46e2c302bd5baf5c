"""`import reco_ray`: the stages as functions, with the parameters of their commands, and nothing heavy imported."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from vectors import clustered, write_embeddings

import reco_ray
from reco_ray.cli import app, main
from reco_ray.errors import RecoError, UsageError
from reco_ray.requests import ReferencesRequest, TrainRequest
from reco_ray.stages import STAGES

# The name of a function has underscores where that of its command has hyphens.
COMMANDS = {name.replace("-", "_"): name for name in STAGES}
FUNCTIONS = [name for name in reco_ray.__all__ if name in COMMANDS]


def test_everything_that_is_offered_is_there_and_described() -> None:
    assert set(FUNCTIONS) == set(COMMANDS) - {"demo"}
    for name in reco_ray.__all__:
        assert inspect.getdoc(getattr(reco_ray, name)), name
    assert set(reco_ray.__all__) <= set(dir(reco_ray))
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        reco_ray.paint  # noqa: B018


def test_no_module_has_the_name_of_a_function() -> None:
    """Importing it would put the module in the function's place."""
    modules = {path.stem for path in Path(reco_ray.__file__).parent.iterdir()}
    assert not modules & set(reco_ray.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {p.name: p.required for p in commands[COMMANDS[name]].params if p.name != "help"}
    parameters = inspect.signature(getattr(reco_ray, name)).parameters
    assert options == {key: p.default is inspect.Parameter.empty for key, p in parameters.items()}
    documented = inspect.getdoc(getattr(reco_ray, name)) or ""
    assert all(f"    {key}: " in documented for key in parameters)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_the_help_names_plain_types(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--help"])
    printed = capsys.readouterr().out
    assert "Annotated" not in printed
    assert "<str>" in printed


def test_importing_it_costs_no_torch_and_no_ray() -> None:
    code = (
        "import sys, reco_ray; reco_ray.run; assert not {'torch', 'ray', 'pandas'} & set(sys.modules);"
        # nor does a process that only reads images for the embed stage
        "import reco_ray.corpus.load_parts, reco_ray.models.image, reco_ray.distributed.parts;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_python_dash_m_is_the_command() -> None:
    command = [sys.executable, "-m", "reco_ray", "embed", "--corpus", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: Missing option '--out'. (see --help)\n"


def test_a_stage_runs_and_returns_what_became_of_it(tmp_path: Path) -> None:
    """The one stage that needs no cluster; paths may be `Path`s."""
    write_embeddings(tmp_path / "embeddings", clustered(20))
    made = reco_ray.index(embeddings=tmp_path / "embeddings", out=tmp_path / "index")  # type: ignore[arg-type]
    assert made.stage == "index"
    assert made.new
    assert made.manifest is not None
    assert made.manifest.counts["images"] == 20
    again = reco_ray.index(embeddings=f"{tmp_path}/embeddings", out=f"{tmp_path}/index")
    assert not again.new
    explained = reco_ray.index(embeddings=f"{tmp_path}/embeddings", explain=True)
    assert "Flat" in explained


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"corpus": "a"}, "out: is needed"),
        ({"corpus": "a", "out": "b", "speed": 1}, "speed: there is no such option"),
        ({"corpsu": "a", "out": "b"}, "corpsu: there is no such option"),
        ({"corpus": ["a"], "out": "b"}, "corpus: takes one value, not a list"),
        ({"corpus": "a", "out": "b", "follow": "maybe"}, "follow: input should be a valid boolean"),
        ({"corpus": "a", "out": "b", "preset": "huge"}, "unknown preset 'huge'"),
        ({"corpus": "a", "out": "b", "max_rejected": "many"}, "setting embed.max_rejected"),
    ],
)
def test_wrong_fields_are_one_line(fields: dict, says: str) -> None:
    with pytest.raises(RecoError, match=says) as caught:
        reco_ray.embed(**fields)
    assert len(str(caught.value).splitlines()) == 1


def test_concepts_may_be_a_list_and_one_file_a_list_of_one() -> None:
    named = ReferencesRequest(index="i", out="o", concepts=["cat", "salt, pepper"])
    assert named.load_vocabulary().names == ["cat", "salt, pepper"]
    assert TrainRequest(out="o", vocabulary="a.txt").vocabulary == ["a.txt"]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="either with --concepts"):
        ReferencesRequest(index="i", out="o").load_vocabulary()


def test_short_fields_win_over_set_and_keep_their_text() -> None:
    request = ReferencesRequest(
        index="i", out="o", concepts="no", exemplars=3, set=["references.exemplars=9", "seed=4"]
    )
    settings = request.load_settings()
    assert (settings.references.exemplars, settings.seed) == (3, 4)
