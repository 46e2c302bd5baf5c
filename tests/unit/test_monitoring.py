"""Dashboard and alerts name metrics and labels that the code, or Ray, exports; alerts lead into the run book."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from ray.dashboard.modules.metrics import dashboards

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
SOURCES = (
    ROOT / "reco_ray" / "distributed" / "stage_metrics.py",
    ROOT / "reco_ray" / "serving" / "serving_metrics.py",
)
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
ADDED_BY_RAY = {"le", "instance", "Location", "NodeType", "operator"}


def defined() -> dict[str, tuple[str, set[str]]]:
    """Our metrics: name -> kind and tags."""
    found = {}
    for source in SOURCES:
        tree = ast.parse(source.read_text())
        named = {  # constants that hold tags
            node.targets[0].id if isinstance(node, ast.Assign) else node.target.id: node.value  # type: ignore
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            kind = ast.unparse(call.func).rpartition(".")[2].strip("_").lower()
            if kind in SUFFIXES and call.args and isinstance(call.args[0], ast.Constant):
                tags: Any = next((k.value for k in call.keywords if k.arg == "tag_keys"), None)
                tags = call.args[2] if len(call.args) > 2 else tags
                tags = named[tags.id] if isinstance(tags, ast.Name) else tags
                name = call.args[0].value
                assert name not in found, f"{name} is defined twice"
                found[name] = (kind, set(ast.literal_eval(tags)) if tags else set())
    return found


def exported() -> dict[str, set[str]]:
    """As Prometheus sees them: name -> labels."""
    return {
        f"ray_{name}{suffix}": tags for name, (kind, tags) in defined().items() for suffix in SUFFIXES[kind]
    }


def of_ray() -> set[str]:
    """What Ray's own dashboards ask for."""
    text = "".join(file.read_text() for file in Path(dashboards.__file__).parent.glob("*_panels.py"))
    return set(re.findall(r"\b(?:ray|autoscaler)_\w+", text))


def panels() -> list[dict[str, Any]]:
    return json.loads((MONITORING / "grafana.json").read_text())["panels"]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    return [t["expr"] for p in panels() for t in p.get("targets", [])] + [rule["expr"] for rule in alerts()]


def test_the_codes_metrics_are_found() -> None:
    assert defined()["reco_images"] == ("counter", {"stage", "outcome"})
    assert defined()["reco_requests"] == ("counter", {"endpoint", "method", "code"})
    assert defined()["reco_batch_images"] == ("histogram", set())
    assert len(defined()) == 11


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_is_promql_over_metrics_that_exist(expression: str) -> None:
    promql_parser.parse(expression)
    names = set(re.findall(r"\b(?:ray|autoscaler)_\w+", expression))
    assert names
    ours = exported()
    assert names <= ours.keys() | of_ray()
    used = {label for listed in re.findall(r"by \(([^)]*)\)", expression) for label in listed.split(", ")}
    used |= set(re.findall(r"[{,]\s*(\w+)\s*=~?", expression))
    if names <= ours.keys():
        assert used - {"le"} <= set.union(*(ours[name] for name in names))
    else:
        assert used - {"Name"} <= ADDED_BY_RAY


def test_a_wrong_expression_is_found() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's only one
        promql_parser.parse("sum by (stage (ray_reco_images_total)")


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(t["expr"] for p in panels() for t in p.get("targets", []))
    assert not [name for name in defined() if not re.search(rf"\bray_{name}(_total|_bucket|_sum)?\b", shown)]


def test_panels_stand_side_by_side_and_have_their_own_numbers() -> None:
    assert len({p["id"] for p in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for place in (p["gridPos"] for p in panels()):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_leads_into_the_run_book() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    sections = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", text, re.M)
    }
    for rule in alerts():
        assert rule["annotations"]["runbook"] in sections, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
