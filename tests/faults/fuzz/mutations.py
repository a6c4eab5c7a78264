"""Changes that a forger, a bug or a bad disk would make, drawn from a `random.Random`.

Hypothesis hands in one that it can shrink; the coverage-guided fuzzer one seeded by libFuzzer.
"""

import copy
import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 14, 64, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 10**400, 0.0, 0.5, -0.0,
    1e308, float("nan"), float("inf"), -float("inf"), "", "0", "1", "nan", "..", "../..", "/etc/passwd", "a/b", ".hidden",
    "a\x00b", "\ud800", "é", "x" * 5000, "A" * 64, "0" * 64, "float16", "float32", "bfloat16", "int8", "float128",
    "manifest.json", "last", "patches", [], {}, [[]], [0], [0, 0], [1, 2, 3], [2**62, 2**62], {"": 0}, {"a": {"b": {}}},
)  # fmt: skip
RAW = {
    "raw: deep list": "[" * 100_000 + "]" * 100_000,
    "raw: deep object": '{"a":' * 100_000 + "0" + "}" * 100_000,
    "raw: deep enough": "[" * 900 + "]" * 900,
    "raw: long integer": "9" * 5000,
    "raw: beyond float": "1e999",
    "raw: many": "[" + "0," * 20_000 + "0]",
}
"""What `json.dumps` does not write: put in the place of these strings afterwards."""
Places = list[tuple[Any, Any]]


def mutated_json(value: Any, draw: random.Random, times: int = 1) -> str:
    """JSON text of `value` with some of its nodes changed; now and then a key comes twice."""
    value = copy.deepcopy(value)
    for _ in range(times):
        value = mutated(value, draw)
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    if draw.random() < 0.1:
        at = [i for i, char in enumerate(text) if char == "{"]
        if at:
            place = draw.choice(at) + 1
            text = (
                text[:place] + draw.choice(('"": 0, "": 0,', '"sum": 0,', '"identity": {},')) + text[place:]
            )
    return text


def mutated(value: Any, draw: random.Random) -> Any:
    """One node changed, in place where it can be."""
    places = all_places(value)
    values = (*VALUES, *RAW)
    if not places or draw.random() < 0.02:
        return copy.deepcopy(draw.choice(values))
    parent, key = draw.choice(places)
    match draw.randrange(7):
        case 0 | 1:
            parent[key] = copy.deepcopy(draw.choice(values))
        case 2:
            del parent[key]
        case 3:  # as another node of the same document
            other, name = draw.choice(places)
            parent[key] = copy.deepcopy(other[name])
        case 4 if isinstance(parent, dict):  # renamed
            parent[draw.choice([each for each in VALUES if isinstance(each, str)])] = parent.pop(key)
        case 5 if isinstance(parent, list):  # once more
            parent.extend(copy.deepcopy(parent[key]) for _ in range(draw.choice((1, 2, 50))))
        case 6 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = draw.choice((parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 2))
        case _:
            parent[key] = [parent[key]]
    return value


def all_places(value: Any) -> Places:
    """(container, key) of each node but the root; not by recursion, since documents may be deep."""
    places: Places = []
    todo = [value]
    while todo:
        node = todo.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            todo.append(node[key])
    return places


def mutated_bytes(data: bytes, draw: random.Random, times: int = 1) -> bytes:
    """Bits flipped, bytes set, pieces cut, doubled, swapped, added."""
    changed = bytearray(data)
    for _ in range(times):
        at = draw.randrange(len(changed) + 1)
        size = draw.choice((1, 2, 8, 64))
        match draw.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1 if at < len(changed):
                changed[at] = draw.choice((0, 0x7F, 0x80, 0xFF, ord("0"), ord('"'), ord("{"), ord("\\")))
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[at : at + size]
            case 4:
                del changed[at:]
            case _:
                changed[at:at] = draw.randbytes(size)
    return bytes(changed)
