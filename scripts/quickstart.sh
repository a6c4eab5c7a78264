#!/usr/bin/env bash
# The whole chain on an ordinary computer, offline: record PushT demonstrations, encode them once, train a small policy
# from the cached tokens with lerobot-train, evaluate it with lerobot-eval, and report.
#
#   scripts/quickstart.sh           at most 20 minutes on two cores
#   scripts/quickstart.sh --smoke   the same chain with a tenth of the work or less: at most 4 minutes
#
# Everything is written under outputs/quickstart/ (outputs/quickstart-smoke/). The encoder is theia-tiny-sim, which comes
# with the package, so that no download is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

encoder="theia-tiny-sim" demos=100 steps=5000 rollouts=30 out="outputs/quickstart"
if [ "${1:-}" = "--smoke" ]; then
    demos=8 steps=150 rollouts=4 out="outputs/quickstart-smoke"
elif [ $# -gt 0 ]; then
    echo "usage: scripts/quickstart.sh [--smoke]" >&2
    exit 2
fi

began=$SECONDS
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$out"
dataset="$out/pusht_expert" train="$out/train" eval="$out/eval"

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "1/5 record $demos PushT demonstrations"
python scripts/record_pusht_demos.py --root "$dataset" --episodes "$demos" --if-missing

say "2/5 encode their frames once"
lerobot-theia-precompute dataset=pusht_expert dataset.root="$dataset" encoder.name="$encoder" \
    pool=7 cache_root="$out/cache" report="$out/precompute.json"

say "3/5 train theia_diffusion from the cache, $steps steps"
rm -rf "$train" "$eval" # a policy of an earlier run
lerobot-train \
    --policy.type=theia_diffusion --policy.encoder="$encoder" --policy.features=cached --policy.cache_root="$out/cache" \
    --policy.token_pool=7 --policy.token_head=flatten --policy.token_head_dim=128 \
    --policy.device=cpu --policy.push_to_hub=false \
    --policy.horizon=16 --policy.n_action_steps=8 --policy.down_dims="[32, 64, 128]" --policy.diffusion_step_embed_dim=64 \
    --policy.noise_scheduler_type=DDIM --policy.num_inference_steps=10 --policy.optimizer_lr=5e-4 \
    --dataset.repo_id=local/pusht_expert --dataset.root="$dataset" \
    --batch_size=64 --steps="$steps" --save_freq="$steps" --log_freq=50 --num_workers=0 --seed=1 \
    --output_dir="$train" 2>&1 | tee "$out/train.log"

say "4/5 evaluate $rollouts rollouts"
lerobot-eval --policy.path="$train/checkpoints/last/pretrained_model" --policy.device=cpu \
    --env.type=pusht --eval.n_episodes="$rollouts" --eval.batch_size="$((rollouts < 10 ? rollouts : 10))" \
    --eval.use_async_envs=false --seed=100000 --output_dir="$eval"

say "5/5 report"
python scripts/quickstart_report.py "$out" --seconds "$((SECONDS - began))"
