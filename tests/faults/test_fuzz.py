"""Whatever bytes a reader is given, only its own error comes out, in bounded memory.

`fuzz/targets.py` says what is read, `fuzz/mutations.py` what is changed. Here Hypothesis draws the changes; the same
targets are driven by coverage with atheris where it is installed (`python -m tests.faults.fuzz.coverage`).
"""

import importlib.util
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_theia.cache import CacheError
from lerobot_theia.cache.manifest import MAX_MANIFEST_BYTES, read_manifest
from tests.faults import children
from tests.faults.children import Tell
from tests.faults.fuzz.mutations import mutated_bytes, mutated_json
from tests.faults.fuzz.targets import READ, REFUSED, TARGETS, Target, make_cache, make_target

pytestmark = pytest.mark.faults

CHECKOUT = Path(__file__).resolve().parents[2]
SEEDS = Path(__file__).with_name("fuzz") / "seeds"
WHOLE = {"manifest": "whole", "shard": "whole", "checkpoint": "heads"}
ALLOWED_BYTES = 2**30

FEW = settings(max_examples=150, deadline=None, derandomize=True)
MANY = settings(max_examples=5000, deadline=None, derandomize=True)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module", params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def target(name: str) -> Target:
    return make_target(name)


def seed(name: str) -> bytes:
    return (SEEDS / name / WHOLE[name]).read_bytes()


def mutated(name: str, draw: random.Random) -> bytes:
    """A whole input, changed as JSON where it is JSON, else as bytes."""
    if name == "shard":
        return mutated_bytes(seed(name), draw, draw.randint(1, 3))
    parts = [mutated_json(json.loads(part), draw, draw.randint(0, 3)) for part in seed(name).split(b"\0")]
    return b"\0".join(part.encode("utf-8", "surrogatepass") for part in parts)


def test_what_is_whole_is_read(name: str, target: Target) -> None:
    assert target(seed(name)) == READ


def test_each_committed_seed_is_read_or_refused(name: str, target: Target) -> None:
    verdicts = {path.name: target(path.read_bytes()) for path in sorted((SEEDS / name).iterdir())}
    assert READ in verdicts.values() and REFUSED in verdicts.values()
    assert set(verdicts.values()) == {READ, REFUSED}


@FEW
@given(draw=st.randoms(use_true_random=False))
def test_structured_changes(name: str, target: Target, draw: random.Random) -> None:
    assert target(mutated(name, draw)) in (READ, REFUSED)


@pytest.mark.slow
@pytest.mark.exhaustive
@MANY
@given(draw=st.randoms(use_true_random=False))
def test_many_structured_changes(name: str, target: Target, draw: random.Random) -> None:
    assert target(mutated(name, draw)) in (READ, REFUSED)


@FEW
@given(data=st.binary(max_size=2000))
def test_arbitrary_bytes(name: str, target: Target, data: bytes) -> None:
    assert target(data) == REFUSED


@FEW
@given(value=JSON)
def test_arbitrary_json(name: str, target: Target, value: object) -> None:
    assert target(json.dumps(value).encode("utf-8", "surrogatepass")) == REFUSED


def test_a_target_that_meets_a_bug_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail."""
    broken = make_target("manifest")
    monkeypatch.setattr("tests.faults.fuzz.targets.read_manifest", lambda folder: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        broken(seed("manifest"))


def manifest_of(kind: str) -> bytes:
    """The largest manifest that is not refused for its size, full of one thing."""
    body = json.loads(seed("manifest"))
    head = json.dumps(body)[:-1].encode() + b', "more": '
    room = MAX_MANIFEST_BYTES - len(head) - 1
    unit = {
        "lists": b"[],",
        "objects": b"{},",
        "numbers": b"1.5,",
        "long numbers": b"1234567890123456789012345678901,",
        "texts": b'"ab",',
        "long texts": b'"' + b"ab" * 15 + b'",',
        "keys": b"",
        "one text": b"",
        "wide text": b"",
        "depth": b"",
    }[kind]
    if unit:
        content = b"[" + unit * ((room - 3) // len(unit)) + b"0]"
    elif kind == "keys":
        content = b"{" + b",".join(b'"%024d":0' % number for number in range(room // 30)) + b"}"
    elif kind == "depth":
        content = b"[" * room
    else:
        letter = "😀".encode() if kind == "wide text" else b"a"
        content = b'"' + letter * ((room - 2) // len(letter)) + b'"'
    return head + content + b"}"


KINDS = (
    "lists", "objects", "numbers", "long numbers", "texts", "long texts", "keys", "one text", "wide text", "depth",
)  # fmt: skip


def read_in_little_memory(tell: Tell, folder: Path) -> str:
    """For children: read a manifest with ALLOWED_BYTES more than there are."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWED_BYTES,) * 2)
    try:
        read_manifest(folder)
    except CacheError as error:
        return f"{type(error).__name__}: {error}"
    return READ


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts a process's memory by /proc")
def test_an_enormous_manifest_is_refused_within_a_gibibyte(tmp_path: Path) -> None:
    make_cache(tmp_path)
    for kind in KINDS:
        (tmp_path / "manifest.json").write_bytes(manifest_of(kind))
        outcome = children.run(read_in_little_memory, tmp_path)
        assert outcome.value and outcome.value.startswith("CacheDamagedError"), (kind, outcome)


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra `fuzz`)"
)
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TARGETS)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.faults.fuzz.coverage",
        name,
        "--seconds=20",
        f"--corpus={tmp_path}",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
