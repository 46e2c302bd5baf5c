"""The nodes of a planned cluster, such as "4xCPU=8,GPU=1", and the number of workers that fit on them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reco_ray.errors import UsageError

_FORM = re.compile(r"(?:(\d+)\s*x\s*)?([A-Za-z][\w.-]*=.*)", re.DOTALL)
_RESOURCE = re.compile(r"\s*([A-Za-z][\w.-]*)\s*=\s*(\d+(?:\.\d+)?)\s*")
_MAX = 1_000_000


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind.

    Attributes:
        count: Number of nodes.
        resources: Resources of each node.
    """

    count: int
    resources: Mapping[str, float]


def parse_nodes(text: str) -> Nodes:
    """Parses "4xCPU=8,GPU=1", four nodes with eight CPUs and a GPU each; without a count, one node.

    Raises:
        UsageError: If the text is not of this form.
    """
    whole = _FORM.fullmatch(text.strip())
    parts = [_RESOURCE.fullmatch(part) for part in whole[2].split(",")] if whole else [None]
    found = {part[1]: float(part[2]) for part in parts if part}
    count = int(whole[1] or 1) if whole else 0
    if len(found) < len(parts) or not 0 < count <= _MAX or max(found.values()) > _MAX:
        raise UsageError(f"--nodes {text!r}: expected a count and resources, such as 4xCPU=8,GPU=1")
    return Nodes(count, found)


def list_nodes(nodes: Sequence[Nodes]) -> list[Mapping[str, float]]:
    """The resources of every single node."""
    return [node.resources for node in nodes for _ in range(node.count)]


def place(
    nodes: Sequence[Nodes], asked: Mapping[str, float], count: int
) -> tuple[int, list[dict[str, float]]]:
    """Places workers on nodes in the given order; no worker spans two nodes.

    Args:
        nodes: The nodes.
        asked: Resources of a worker.
        count: Number of workers to place.

    Returns:
        The number of workers that fit, at most `count`, and the resources left on each kind of node.
    """
    placed, left = 0, []
    for node in nodes:
        here = min(count - placed, node.count * fits(node.resources, asked))
        free = {name: node.count * amount for name, amount in node.resources.items()}
        left.append({name: amount - here * asked.get(name, 0.0) for name, amount in free.items()})
        placed += here
    return placed, left


def fits(resources: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """Number of workers with the resources `asked` that fit on a node."""
    ratios = [resources.get(name, 0.0) / amount for name, amount in asked.items() if amount]
    return int(min(ratios, default=_MAX) + 1e-9)
