"""Describes the differences between the settings and inputs of two runs."""

from collections.abc import Mapping
from typing import Any

_MOST_NAMED = 8  # differences in a line
_MOST_ITEMS = 5  # of a list
_LONG = 60  # characters of a value, beyond which only its end that differs is shown
_BEFORE = 20  # characters shown before the place where two long values begin to differ


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One phrase for every value that differs, such as "references.exemplars = 16, now 20".

    Args:
        stored: JSON-able values as they were. Nested mappings are compared by value, lists by item.
        wanted: the new values.
    """
    before, now = _flat(stored), _flat(wanted)
    return [
        _phrase(key, before.get(key), now.get(key))
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def describe_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The differences in one line: at most 8, then the number of further ones."""
    found = differences(stored, wanted)
    more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return "; ".join(found[:_MOST_NAMED]) + more


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _phrase(key: str, before: Any, now: Any) -> str:
    if key == "listing":  # a fingerprint, which means nothing to users
        return "listing: images came, went or changed"
    if isinstance(before, list) and isinstance(now, list):
        return f"{key}: {_changes(before, now)}"
    first, second = _text(before), _text(now)
    if max(len(first), len(second)) > _LONG:
        first, second = _from_difference(first, second)
    return f"{key} = {first}, now {second}"


def _changes(before: list[Any], now: list[Any]) -> str:
    gone = [_text(item) for item in before if item not in now]
    new = [_text(item) for item in now if item not in before]
    said = [f"no longer {_items(gone)}"] if gone else []
    said += [f"now also {_items(new)}"] if new else []
    return ", ".join(said) or "in another order"


def _items(items: list[str]) -> str:
    more = f" and {len(items) - _MOST_ITEMS} more" if len(items) > _MOST_ITEMS else ""
    return ", ".join(items[:_MOST_ITEMS]) + more


def _text(value: Any) -> str:
    """A value as text; a concept as its name with synonyms and alias."""
    if isinstance(value, Mapping) and "name" in value:
        others = [_text(other) for key, other in value.items() if key != "name" and other]
        return f"{value['name']} ({'; '.join(others)})" if others else str(value["name"])
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _from_difference(first: str, second: str) -> tuple[str, str]:
    """Two long values from shortly before the place where they begin to differ."""
    same = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    start = max(0, (min(len(first), len(second)) if same is None else same) - _BEFORE)
    return _cut(first, start), _cut(second, start)


def _cut(text: str, start: int) -> str:
    end = start + _LONG
    return (
        ("..." if start and start < len(text) else "") + text[start:end] + ("..." if end < len(text) else "")
    )
