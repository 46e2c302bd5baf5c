"""pipeline.yaml: the stages of a project in one file, read and checked, then run one after another."""

import json
import time
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from reco_ray.errors import UsageError, reason
from reco_ray.files import storage
from reco_ray.requests import Request, SegmentRequest, WithModels, names_field, usage_error
from reco_ray.stages import STAGES, Listener

Options = dict[str, Any]
_WITH_DENSE_MODELS = ("references", "segment", "label", "train")


class PipelineStages(BaseModel):
    """For each stage the fields of its request, or a list of them.

    In the order in which they run, except that `segment` with a trained segmenter runs after `train`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-")
    )

    embed: Options | list[Options] | None = None
    index: Options | list[Options] | None = None
    duplicates: Options | list[Options] | None = None
    references: Options | list[Options] | None = None
    segment: Options | list[Options] | None = None
    export_masks: Options | list[Options] | None = None
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
    stages: PipelineStages


@dataclass(frozen=True)
class PipelineStep:
    """One stage of the pipeline. options: as the file gives them; request: what they ask for."""

    stage: str
    options: Options
    request: Request


def read_pipeline(file: str) -> list[PipelineStep]:
    """Reads and checks a pipeline.

    Raises:
        UsageError: unreadable, an unknown stage or option, an option that its stage needs and that is not there.
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
    for field, entry in pipeline.stages:
        stage = field.replace("_", "-")
        for options in [] if entry is None else entry if isinstance(entry, list) else [entry]:
            steps.append(_step(file, stage, options, pipeline))
    last = max((n for n, step in enumerate(steps) if step.stage == "train"), default=0)
    early = [
        step for step in steps[:last] if isinstance(step.request, SegmentRequest) and step.request.segmenter
    ]
    if early:  # their segmenters may be trained by this pipeline
        others = [step for step in steps[: last + 1] if step not in early]
        steps = [*others, *early, *steps[last + 1 :]]
    if not steps:
        raise UsageError(f"{file}: no stages: give at least one, such as embed: {{corpus: DIR, out: DIR}}")
    return steps


def run_pipeline(
    file: str, steps: list[PipelineStep], summary: str, listener: Listener | None = None
) -> None:
    """Runs the steps in their order on the connected cluster; what is finished does nothing, so a second run goes on.

    Writes `summary`, JSON, after every step: the file, its state ("running", "failed", "stopped", "done"), and each
    step's stage, options, seconds, state and, if it failed, its error.

    Args:
        file: for the summary.
        steps: as `read_pipeline` reads them.
        summary: URI of the file to write.
        listener: is told how every stage gets on.

    Raises:
        RecoError: as the first step that fails does; the summary then holds its line.
    """
    done: list[dict[str, object]] = []

    def write(state: str) -> None:
        content = {"pipeline": storage.absolute(file), "state": state, "steps": done}
        storage.write_bytes(summary, json.dumps(content, indent=2).encode())

    _require_models(steps)
    write("running")
    for step in steps:
        started = time.monotonic()
        record: dict[str, object] = {"stage": step.stage, "options": step.options}
        try:
            STAGES[step.stage].carry_out(step.request, listener or Listener())
            record["state"] = "done"
        except Exception as error:
            record |= {"state": "failed", "error": reason(error)}
            raise
        except BaseException:  # Ctrl-C, or SIGTERM as `ray job stop` sends it
            record["state"] = "stopped"
            raise
        finally:
            done.append(record | {"seconds": round(time.monotonic() - started, 2)})
            write("running" if record["state"] == "done" else str(record["state"]))
    write("done")


def _require_models(steps: list[PipelineStep]) -> None:
    """Checks the dense models of all steps, so that one without dense features is found before a corpus is embedded."""
    from reco_ray.models.description import require_dense_models

    if steps[0].stage != "embed":  # then every step finds it at its own beginning
        return
    checked = set()
    for step in steps:
        request = step.request
        if step.stage not in _WITH_DENSE_MODELS or not isinstance(request, WithModels):
            continue
        if getattr(request, "segmenter", None) or getattr(request, "labels", None):
            continue  # a trained segmenter, or training on labels, takes no dense models
        settings = request.load_settings()
        if (models := settings.models.model_dump_json()) not in checked:
            require_dense_models(settings)
            checked.add(models)


def _step(file: str, stage: str, options: Options, pipeline: Pipeline) -> PipelineStep:
    request = STAGES[stage].request
    shared = {"preset": pipeline.preset, "settings": pipeline.settings}
    given = {k: v for k, v in shared.items() if v is not None and k in request.model_fields} | options
    try:
        return PipelineStep(stage, options, request(**given))
    except ValidationError as error:
        dot = "." if names_field(error) else ": "
        raise UsageError(f"{file}: stages.{stage}{dot}{usage_error(error)}") from error
