"""Directives that write reference pages from the code while the site is built: `commands` and `settings`."""

from collections.abc import Iterator
from typing import Any

import typer
from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.cli import get_docs_for_click

from reco_ray.cli import app
from reco_ray.config import Settings, load_settings, preset_names


class Commands(SphinxDirective):
    """Every command of `reco-ray` with its arguments and options, as `--help` tells them."""

    def run(self) -> list[nodes.Node]:
        command: Any = typer.main.get_command(app)
        context = command.context_class(command, info_name="reco-ray")
        text = "".join(
            get_docs_for_click(
                obj=command.get_command(context, name),
                ctx=context,
                indent=1,
                name=name,
                call_prefix="reco-ray",
            )
            for name in command.list_commands(context)
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class SettingsTables(SphinxDirective):
    """Every setting: type, default, what it is, and what the presets set it to."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(settings_page()), allow_section_headings=True)


def settings_page() -> Iterator[str]:
    """Markdown: a heading and a table for each section of the settings."""
    presets = {name: load_settings(name) for name in preset_names()}
    yield from _table("", Settings, presets)
    for name, field in Settings.model_fields.items():
        if _is_section(field):
            yield from ["", f"## {name}", "", str(field.annotation.__doc__), ""]
            values = {p: getattr(s, name) for p, s in presets.items()}
            if any(map(_is_section, field.annotation.model_fields.values())):
                yield from _nested(name, field.annotation, values)
            else:
                yield from _table(f"{name}.", field.annotation, values)


def _nested(name: str, section: Any, presets: dict[str, Any]) -> Iterator[str]:
    """Of sections inside a section, which all have the same fields: their names, and one table."""
    fields = section.model_fields
    first = next(iter(fields))
    named = [f"`{name}.{key}` ({field.description})" for key, field in fields.items()]
    yield from [f"{', '.join(named)}; each takes", ""]
    values = {p: getattr(s, first) for p, s in presets.items()}
    yield from _table(f"{name}.STAGE.", fields[first].annotation, values)


def _table(prefix: str, section: Any, presets: dict[str, Any]) -> Iterator[str]:
    names = list(presets)
    yield f"| setting | type | default | {' | '.join(names)} | |"
    yield "|---|---|---|" + "---|" * (len(names) + 1)
    for name, field in section.model_fields.items():
        if _is_section(field):
            continue
        default = "required" if field.is_required() else _code(field.get_default(call_default_factory=True))
        chosen = [getattr(presets[p], name) for p in names]
        cells = [_code(v) if field.is_required() or v != field.default else "" for v in chosen]
        kind = getattr(field.annotation, "__name__", None)
        kind = kind if isinstance(field.annotation, type) and kind else str(field.annotation)
        kind = kind.replace("typing.", "").replace("|", "\\|")
        limits = _limits(field)
        yield (
            f"| `{prefix}{name}` | `{kind}`{limits} | {default} | {' | '.join(cells)} | {field.description} |"
        )


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(rule, name):,}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return "".join(f", {limit}" for limit in found)


def _code(value: object) -> str:
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("commands", Commands)
    app.add_directive("settings", SettingsTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
