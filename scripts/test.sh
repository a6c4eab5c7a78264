#!/usr/bin/env bash
# Set up .venv/ and run everything that must hold: lint, types, tests. Arguments go to pytest:
#   scripts/test.sh                  all
#   scripts/test.sh -m "not slow"    without the lerobot-train runs
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Nothing is downloaded: what is not on this machine is an error, at once.
HF_HUB_OFFLINE=1 .venv/bin/python -m pytest "$@"
