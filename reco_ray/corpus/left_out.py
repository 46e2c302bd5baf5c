"""What a listing leaves out: counted by kind, and said in one line."""

from collections import Counter
from enum import Enum


class Kind(Enum):
    """What was left out: its name for one, for several, and how it is taken in."""

    VIDEOS = "video", "videos", "the glob '{root}/**' takes videos too"
    PICTURES = "picture of another format", "pictures of other formats", "convert them to JPEG or PNG"
    ARCHIVES = "archive", "archives", "unpack them"
    NO_SUFFIX = "file without a suffix", "files without a suffix", "a list that names them takes them"
    FILES = "other file", "other files", "a list that names files takes them, whatever their suffix"
    JUNK = "hidden or system file", "hidden and system files", "a list that names them takes them"
    OWN = "folder that reco-ray wrote", "folders that reco-ray wrote", "a folder inside can be named itself"
    TABLES = "table without images", "tables without images", "named itself, a table says what it lacks"
    ADDRESSES = (
        "table of addresses whose images lie beside it",
        "tables of addresses whose images lie beside them",
        "named itself, a table is fetched",
    )
    LINKS = "link to a folder that is listed anyhow", "links to folders that are listed anyhow", ""
    SPECIAL = "pipe, socket or device", "pipes, sockets and devices", ""

    def __init__(self, one: str, several: str, advice: str) -> None:
        self.one, self.several, self.advice = one, several, advice


_MOST_NAMES = 4  # of suffixes or names in the line
_MOST_KEPT = 100


class LeftOut:
    """Counts by kind; of each kind by suffix or name, the first hundred of them."""

    def __init__(self) -> None:
        self._counts: dict[Kind, Counter[str]] = {}

    def add(self, kind: Kind, what: str = "") -> None:
        """Counts one.

        Args:
            what: its suffix, or its name where they are few; "" = not named in the line.
        """
        names = self._counts.setdefault(kind, Counter())
        names[what if what in names or len(names) < _MOST_KEPT else ""] += 1

    def by_kind(self) -> dict[str, int]:
        """How many of each kind, for an artifact's summary."""
        return {kind.several: names.total() for kind, names in self._counts.items()}

    def sentence(self, root: str) -> str:
        """One line, without the source's name; "" if nothing was left out.

        Args:
            root: of the source, for globs in the advice.
        """
        parts = []
        for kind in Kind:
            if names := self._counts.get(kind):
                number = names.total()
                details = [_named(names)] if any(names) else []
                details += [kind.advice.format(root=root)] if kind.advice else []
                word = kind.one if number == 1 else kind.several
                parts.append(f"{number:,} {word}" + (f" ({': '.join(details)})" if details else ""))
        return "left out: " + "; ".join(parts) if parts else ""


def _named(names: Counter[str]) -> str:
    ordered = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    shown = [(name, count) for name, count in ordered if name][:_MOST_NAMES]
    words = [name if count == 1 else f"{count:,} {name}" for name, count in shown]
    more = names.total() - sum(count for _, count in shown)
    return ", ".join(words) + (f", {more:,} more" if more else "")
