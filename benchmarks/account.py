"""The plain account in docs/performance.md: bytes and operations first, then what was measured of them."""

from typing import Any

Results = dict[str, dict[str, Any]]


def account(results: Results) -> list[str]:
    """Paragraphs, each followed by an empty line; one per benchmark that has results."""
    lines = []
    for name, write in PARAGRAPHS.items():
        if name in results:
            lines += [write(results[name]), ""]
    return lines


def median(result: dict[str, Any], arm: str) -> float:
    return result["arms"][arm]["median"]


def outcome(result: dict[str, Any], what: str) -> float:
    return next(each["value"] for each in result["outcomes"] if each["what"] == what)


PARAGRAPHS: dict[str, Any] = {}
