#!/usr/bin/env bash
# All benchmarks, one after the other, then docs/performance.md. Arguments go to each:
#   benchmarks/run_all.sh            about half an hour on two cores; leave the machine alone meanwhile
#   benchmarks/run_all.sh --quick    two minutes: checks that everything runs, and says nothing of speed
set -euo pipefail
cd "$(dirname "$0")/.."
python=".venv/bin/python"
[ -x "$python" ] || python=python
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

for name in gather loader scale int8 precompute train_diffusion train_act gpu; do
    printf '\n== %s\n' "$name"
    "$python" "benchmarks/$name.py" "$@"
done
case " $* " in
    *" --quick "*) ;;
    *) "$python" benchmarks/report.py ;;
esac
