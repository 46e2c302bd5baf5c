"""pipeline.yaml: the stages of a project in one file, read and checked, then run one after another."""

import json
import time
from dataclasses import dataclass
from typing import Any

import typer
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from reco_ray import storage
from reco_ray.errors import UsageError, reason

Value = str | int | float | bool | list[str] | list[int]
Options = dict[str, Value]


class Stages(BaseModel):
    """A stage holds the options of the command of its name, hyphens as underscores. In the order in which they run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embed: Options | list[Options] | None = None
    index: Options | list[Options] | None = None
    references: Options | list[Options] | None = None
    segment: Options | list[Options] | None = None
    label: Options | list[Options] | None = None
    train: Options | list[Options] | None = None
    export: Options | list[Options] | None = None
    sweep: Options | list[Options] | None = None
    evaluate: Options | list[Options] | None = None


class Pipeline(BaseModel):
    """The file. Paths in it are relative to where the command runs; `preset` and `settings` hold for every stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "mini"
    settings: str | None = None
    stages: Stages


@dataclass(frozen=True)
class Step:
    """One command of the pipeline. options: as the file gives them; words: its command line."""

    stage: str
    options: Options
    words: list[str]


def read_pipeline(file: str) -> list[Step]:
    """Reads and checks a pipeline.

    Raises:
        UsageError: unreadable, an unknown stage or option, an option that its command needs and that is not there.
    """
    try:
        pipeline = Pipeline.model_validate(yaml.safe_load(storage.read_bytes(file)))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: the pipeline cannot be read: {reason(error)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        unknown = first["type"] == "extra_forbidden"
        raise UsageError(
            f"{file}: {place}: {'there is no such field' if unknown else first['msg'].lower()}"
        ) from error
    steps = []
    for stage, entry in pipeline.stages:
        for options in [] if entry is None else entry if isinstance(entry, list) else [entry]:
            steps.append(_step(file, stage, options, pipeline))
    if not steps:
        raise UsageError(f"{file}: no stages: give at least one, such as embed: {{corpus: DIR, out: DIR}}")
    return steps


def run_pipeline(file: str, steps: list[Step], summary: str) -> None:
    """Runs the steps in their order on the connected cluster; what is finished does nothing, so a second run goes on.

    Writes `summary`, JSON, after every step: the file, its state ("running", "failed", "stopped", "done"), and each
    step's stage, options, seconds, state and, if it failed, its error.

    Raises:
        RecoError: as the first step that fails does; the summary then holds its line.
    """
    done: list[dict[str, Any]] = []

    def write(state: str) -> None:
        content = {"pipeline": storage.absolute(file), "state": state, "steps": done}
        storage.write_bytes(summary, json.dumps(content, indent=2).encode())

    write("running")
    for step in steps:
        started = time.monotonic()
        record: dict[str, Any] = {"stage": step.stage, "options": step.options}
        try:
            if _commands()(args=step.words, standalone_mode=False):  # what typer makes of Ctrl-C
                raise KeyboardInterrupt
            record["state"] = "done"
        except Exception as error:
            record |= {"state": "failed", "error": reason(error)}
            raise
        except BaseException:  # Ctrl-C, or SIGTERM as `ray job stop` sends it
            record["state"] = "stopped"
            raise
        finally:
            done.append(record | {"seconds": round(time.monotonic() - started, 2)})
            write("running" if record["state"] == "done" else record["state"])
    write("done")


def parameters(step: Step) -> dict[str, Any]:
    """The values of a step's options as its command gets them, defaults filled in."""
    command = _commands().commands[step.stage]
    return dict(command.make_context(step.stage, step.words[1:]).params)


def _commands() -> Any:
    import reco_ray.cli  # every command is registered by then

    return typer.main.get_command(reco_ray.cli.app)


def _step(file: str, stage: str, options: Options, pipeline: Pipeline) -> Step:
    parameters = {p.name.rstrip("_"): p for p in _commands().commands[stage].params if p.name != "help"}
    shared = {"preset": pipeline.preset, "settings": pipeline.settings}
    given = {k: v for k, v in shared.items() if v is not None and k in parameters} | options
    for name in given:
        if name not in parameters:
            raise UsageError(f"{file}: stages.{stage}.{name}: `reco-ray {stage}` has no such option")
    words = [stage]
    for name, parameter in parameters.items():
        if name not in given:
            if parameter.required:
                raise UsageError(f"{file}: stages.{stage}.{name}: is needed")
            continue
        value = given[name]
        if isinstance(value, list) and not parameter.multiple:
            raise UsageError(f"{file}: stages.{stage}.{name}: takes one value, not a list")
        if getattr(parameter, "is_flag", False):
            words += [parameter.opts[0]] if value else []
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [str(one)] if parameter.param_type_name == "argument" else [f"{parameter.opts[0]}={one}"]
    return Step(stage, options, words)
