#!/usr/bin/env bash
# Make the encoder that comes with the package again, from nothing: some four hours of two cores. Goes on where it was
# interrupted. The result is outputs/distill/theia_tiny_sim_full_size/shipped/. Arguments go to all three parts; with these it
# takes minutes, to see that everything works on a machine (delete outputs/distill/ afterwards):
#
#   scripts/make_theia_tiny_sim.sh training.steps=8 training.batch_size=8 training.checkpoint_every=4 \
#       training.validate_every=4 corpus.sources.pusht.images=100 corpus.sources.metaworld.episodes=1 \
#       corpus.sources.metaworld.frames_per_episode=2 corpus.sources.aloha.episodes=4 \
#       corpus.sources.aloha.frames_per_episode=2
set -euo pipefail
cd "$(dirname "$0")/.."

THEIA_EXTRAS="${THEIA_EXTRAS:-dev,pusht,metaworld,aloha}" scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" MUJOCO_GL="${MUJOCO_GL:-osmesa}"

for recipe in theia_tiny_sim theia_tiny_sim_continued theia_tiny_sim_full_size; do
    lerobot-theia-distill --config-name="$recipe" output_dir="outputs/distill/$recipe" resume=true "$@"
done
