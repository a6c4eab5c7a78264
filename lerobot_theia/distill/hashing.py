"""Digests of plain values."""

import hashlib
from typing import Any

from lerobot_theia.cache.identity import canonical_json


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in its one spelling."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
