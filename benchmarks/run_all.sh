#!/usr/bin/env bash
# All benchmarks, one after the other, then docs/performance.md. Arguments go to each:
#   benchmarks/run_all.sh            about half an hour on two cores; leave the machine alone meanwhile
#   benchmarks/run_all.sh --quick    two minutes: checks that everything runs, and says nothing of speed
set -euo pipefail
cd "$(dirname "$0")/.."
python=".venv/bin/python"
[ -x "$python" ] || python=python
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
flags=("$@")

measure() {
    local name
    for name in "$@"; do
        printf '\n== %s\n' "$name"
        "$python" "benchmarks/$name.py" "${flags[@]}" || return
    done
}

case " $* " in
    *" --quick "*)
        # No time counts, so two may run at once, in a thread each: what needs PushT, and what does not.
        export OMP_NUM_THREADS=1
        log=$(mktemp)
        trap 'rm -f "$log"' EXIT
        trap 'kill 0' INT TERM
        measure loader int8 train_diffusion precompute probe >"$log" 2>&1 &
        with_pusht=$!
        status=0
        measure gather scale heads train_act gpu || status=$?
        wait "$with_pusht" || status=$?
        cat "$log"
        exit "$status"
        ;;
    *)
        measure gather loader scale int8 heads precompute train_diffusion train_act gpu probe
        "$python" benchmarks/report.py
        "$python" benchmarks/probe_report.py
        ;;
esac
