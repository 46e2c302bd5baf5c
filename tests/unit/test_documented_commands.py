"""Every `reco-ray` command that a document shows exists, with the options that it shows."""

import ast
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import ROOT, blocks, commands, documents

from reco_ray.cli import app

CALLS = [
    pytest.param(call, id=f"{document.relative_to(ROOT)}-{' '.join(call)[:60]}")
    for document in documents()
    for block in blocks(document)
    if block.language != "python"
    for call in commands(block.text)
]


def test_the_documents_show_commands() -> None:
    assert len(CALLS) > 20
    assert list(commands("reco-ray embed --corpus 'a b' \\\n  --out x # why\n$ reco-ray doctor\necho")) == [
        ["embed", "--corpus", "a b", "--out", "x"],
        ["doctor"],
    ]


@pytest.mark.parametrize("call", CALLS)
def test_a_command_that_is_shown_can_be_given(call: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    arguments, elided = [word for word in call if word != "..."], "..." in call
    context = command.make_context("reco-ray", [*arguments], resilient_parsing=True)
    while hasattr(command, "commands"):
        assert arguments, "a group without its command"
        name = arguments.pop(0)
        assert name in command.commands, f"there is no such command: {name}"
        command = command.commands[name]
        # What is left out behind "..." is not missing.
        context = command.make_context(name, [*arguments], parent=context, resilient_parsing=True)
        known = {option for parameter in command.params for option in parameter.opts}
        if not hasattr(command, "commands"):
            unknown = [w for w in arguments if w.startswith("--") and w.partition("=")[0] not in known]
            assert not unknown, f"{name} has no {unknown}"
    if not elided:
        missing = [p.name for p in command.params if p.required and context.params.get(p.name) is None]
        assert not missing, f"{command.name} needs {missing}"


@pytest.mark.parametrize("document", documents(), ids=lambda document: str(document.relative_to(ROOT)))
def test_python_that_is_shown_is_python(document: Path) -> None:
    for block in blocks(document):
        if block.language == "python":
            ast.parse(block.text)
