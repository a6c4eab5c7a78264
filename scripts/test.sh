#!/usr/bin/env bash
# Set up .venv/ and run everything that must hold: lint, types, tests. Arguments go to pytest:
#   scripts/test.sh                  all but those that take minutes each (-m exhaustive)
#   scripts/test.sh -m "not slow"    without the lerobot-train runs, too
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Nothing is downloaded: what is not on this machine is an error, at once.
# A process per core, a file at a time; no test needs more than one thread.
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n logical --dist loadfile "$@"
