"""What the documents say: their files, fenced blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """The Markdown files that a reader is given."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block: its language, what else stands behind the fence, its text without the indent."""

    language: str
    title: str
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document, in order."""
    for indent, info, text in _FENCE.findall(document.read_text()):
        language, _, title = info.strip().partition(" ")
        yield Block(language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))


def commands(text: str, program: str = "reco-ray") -> Iterator[list[str]]:
    """The arguments of every call of a program in a block of shell lines."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(rf"(\$ )?{program} ", line.strip()):
            yield shlex.split(line.strip().removeprefix("$ "), comments=True)[1:]
