"""Coverage-guided fuzzing of a reader with atheris (`pip install ".[fuzz]"`).

    python -m tests.faults.fuzz.coverage manifest --seconds 300
    python -m tests.faults.fuzz.coverage shard --corpus outputs/fuzz/shard      # keep what it finds, and go on from it

Begins with the seeds beside this file. Ends with status 0, or writes the input that broke a reader to `crash-*` in the
current folder; put that among the seeds once the reader is mended, and the test suite runs it for ever.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lerobot_theia.cache", "lerobot_theia.encoder"]):
    from tests.faults.fuzz.targets import TARGETS, make_target

from tests.faults.fuzz.mutations import mutated_bytes, mutated_json

SEEDS = Path(__file__).with_name("seeds")
MAX_BYTES = 1 << 16
MEMORY_MIB = 4096
SECONDS_AN_INPUT = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs")
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reach something new")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    # libFuzzer writes what it finds to the first folder.
    found = chosen.corpus or Path(tempfile.mkdtemp(prefix="theia-corpus-"))
    found.mkdir(parents=True, exist_ok=True)
    target = make_target(chosen.target)
    text = chosen.target != "shard"

    def once(data: bytes) -> None:
        target(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            changed = structured(data, draw) if text else mutated_bytes(data, draw, draw.randint(1, 3))
            if len(changed) <= max_size:
                return changed
        return atheris.Mutate(data, max_size)

    arguments = [
        sys.argv[0],
        f"-max_total_time={chosen.seconds}",
        f"-runs={chosen.runs}",
        f"-seed={chosen.seed}",
        f"-max_len={MAX_BYTES}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-timeout={SECONDS_AN_INPUT}",
        "-print_final_stats=1",
        str(found),
        str(SEEDS / chosen.target),
    ]
    atheris.Setup(arguments, once, custom_mutator=mutate)
    atheris.Fuzz()


def structured(data: bytes, draw: random.Random) -> bytes:
    """Change the JSON documents in `data`, which zero bytes part; what is none is changed as bytes."""
    parts = data.split(b"\0")
    at = draw.randrange(len(parts))
    with contextlib.suppress(ValueError, RecursionError):
        parts[at] = mutated_json(json.loads(parts[at]), draw, draw.randint(1, 3)).encode(
            "utf-8", "surrogatepass"
        )
        return b"\0".join(parts)
    return mutated_bytes(data, draw)


if __name__ == "__main__":
    main()
