"""The nodes of a cluster to plan for: "4xCPU=8,GPU=1", and how many workers fit on them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reco_ray.errors import UsageError

_FORM = re.compile(r"(?:(\d+)\s*x\s*)?([A-Za-z][\w.-]*=.*)", re.DOTALL)
_RESOURCE = re.compile(r"\s*([A-Za-z][\w.-]*)\s*=\s*(\d+(?:\.\d+)?)\s*")
_MOST = 1_000_000


@dataclass(frozen=True)
class Nodes:
    """Some nodes of one kind. has: resources of each."""

    count: int
    has: Mapping[str, float]


def parse_nodes(text: str) -> Nodes:
    """ "4xCPU=8,GPU=1" -> four nodes with eight CPUs and a GPU each; without a count it is one node.

    Raises:
        UsageError: not of this form.
    """
    whole = _FORM.fullmatch(text.strip())
    parts = [_RESOURCE.fullmatch(part) for part in whole[2].split(",")] if whole else [None]
    found = {part[1]: float(part[2]) for part in parts if part}
    count = int(whole[1] or 1) if whole else 0
    if len(found) < len(parts) or not 0 < count <= _MOST or max(found.values()) > _MOST:
        raise UsageError(f"--nodes {text!r}: expected a count and resources, such as 4xCPU=8,GPU=1")
    return Nodes(count, found)


def one_by_one(nodes: Sequence[Nodes]) -> list[Mapping[str, float]]:
    """Resources of each node, as a connected cluster lists them."""
    return [node.has for node in nodes for _ in range(node.count)]


def place(
    nodes: Sequence[Nodes], asked: Mapping[str, float], count: int
) -> tuple[int, list[dict[str, float]]]:
    """Puts workers on nodes, none across two, the first kind of node first.

    Args:
        asked: resources of a worker. count: how many are wanted.

    Returns:
        How many fit, at most `count`; and what they leave, a kind of node at a time.
    """
    placed, left = 0, []
    for node in nodes:
        here = min(count - placed, node.count * fits(node.has, asked))
        free = {name: node.count * amount for name, amount in node.has.items()}
        left.append({name: amount - here * asked.get(name, 0.0) for name, amount in free.items()})
        placed += here
    return placed, left


def fits(has: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many times what is asked for is there."""
    rooms = [has.get(name, 0.0) / amount for name, amount in asked.items() if amount]
    return int(min(rooms, default=_MOST) + 1e-9)
