"""What the licences of corpora and teachers mean for the student."""

import re
from collections.abc import Mapping, Sequence

from lerobot_theia.distill.errors import DistillError

OWN_LICENSE = "Apache-2.0"
UNKNOWN = "unknown"

_PERMISSIVE = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-2.0",
    "unlicense", "isc", "zlib", "public-domain",
)  # fmt: skip
_FORBIDDING = re.compile(
    r"non-?\s?commercial|\b(no|not for|without) commercial|\bnc\b|-nc(-|\b)|academic|"
    r"research([- ]use)?[- ]only|only for research|for research (use|purposes)|research purposes",
    re.I,
)
_HARMLESS = re.compile(
    r"(drawn|rendered|computed) by this project( with [\w-]+(, (mit|apache-2\.0))?)?|dinov2, by meta"
)
"""Remarks that this project makes. Any other may take back what the licence gives."""

ALLOWED, FORBIDDEN, UNCLEAR = "allowed", "forbidden", "unclear"


def commercial_use(license: str) -> str:
    """`allowed`, `forbidden` or `unclear`, by the words of a licence; what is not known is unclear."""
    if _FORBIDDING.search(license):
        return FORBIDDEN
    name, _, remark = license.lower().strip().partition(" (")
    if remark and not _HARMLESS.fullmatch(remark.removesuffix(")")):
        return UNCLEAR
    name = re.sub(r"[ ,]+(licen[sc]e|version)\b", "", name.strip()).replace(" ", "-")
    return ALLOWED if name in _PERMISSIVE else UNCLEAR


def strictness(license: str) -> int:
    """Larger for what allows less."""
    return (ALLOWED, UNCLEAR, FORBIDDEN).index(commercial_use(license))


def stated_or_stricter(stated: str, card: str) -> str:
    """What was stated of a model; what its card says if that is stricter, or nothing was stated."""
    if not stated or not card or strictness(card) <= strictness(stated):
        return stated or card
    return f"{card} (by its model card; stated was {stated})"


def required(what: str, license: str | None) -> str:
    """A licence that was stated. Raises DistillError if none was."""
    if license is None or not license.strip():
        raise DistillError(
            f"{what} has no licence: state the one it comes under, `license: cc-by-nc-4.0` for example, or "
            "`license: unknown`; the student's provenance says it"
        )
    return " ".join(license.split())


def strictest(statements: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What -> licence, of several sessions of a run: where they differ, the one that allows least."""
    found: dict[str, str] = {}
    for parts in statements:
        for what, license in parts.items():
            found[what] = max(found.get(what, license), license, key=strictness)
    return found


def student_license(parts: Mapping[str, str]) -> tuple[str, str]:
    """Licence of a student made from `parts` (what -> licence), in words, and whether it allows commercial use."""
    verdicts = {what: commercial_use(license) for what, license in parts.items()}
    for verdict, words in (
        (FORBIDDEN, "non-commercial use only, because of"),
        (UNCLEAR, "unknown; commercial use is yours to check, because of"),
    ):
        if causes := [f"{what} ({parts[what]})" for what, found in verdicts.items() if found == verdict]:
            return f"{words} {'; '.join(causes)}", verdict
    return OWN_LICENSE, ALLOWED
