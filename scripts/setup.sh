#!/usr/bin/env bash
# Make .venv/ with everything a checkout needs: the plugin (editable), LeRobot, simulators and test tools, in the
# versions of constraints.txt. Does nothing when .venv/ is up to date. Takes about two minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

EXTRAS="${THEIA_EXTRAS:-dev,pusht}"

find_python() {
    # LeRobot wants 3.12 or later. pyenv keeps its versions off PATH, so look there too.
    local candidate
    for candidate in "${PYTHON:-}" python3.12 python3.13 python3 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.12 or 3.13 (with venv) found on PATH or in ~/.pyenv/versions." >&2
    echo "       Install one (pyenv install 3.12, or apt-get install python3.12-venv), or name it: PYTHON=/path $0" >&2
    exit 1
}

stamp=".venv/setup.sha256"
wanted="$(cat pyproject.toml constraints.txt "$0" | sha256sum | cut -d' ' -f1) $EXTRAS"
if [ -x .venv/bin/lerobot-train ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

python="$(find_python)"
echo "setup: .venv/ with $("$python" --version) ($python)"
[ -x .venv/bin/python ] && .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || {
    rm -rf .venv
    "$python" -m venv .venv
}
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
# Compiled here and once: where PYTHONDONTWRITEBYTECODE is set, as it often is in containers, each command would compile
# all of LeRobot's imports anew, for 20 seconds.
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --constraint constraints.txt --editable ".[$EXTRAS]"
echo "$wanted" >"$stamp"
