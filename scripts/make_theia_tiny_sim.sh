#!/usr/bin/env bash
# Make the encoder that comes with the package again, from nothing: some four hours of two cores. Goes on where it was
# interrupted. The result is outputs/distill/theia_tiny_sim_full_size/shipped/.
set -euo pipefail
cd "$(dirname "$0")/.."

THEIA_EXTRAS="${THEIA_EXTRAS:-dev,pusht,metaworld,aloha}" scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" MUJOCO_GL="${MUJOCO_GL:-osmesa}"

for recipe in theia_tiny_sim theia_tiny_sim_continued theia_tiny_sim_full_size; do
    [ -f "outputs/distill/$recipe/shipped/provenance.json" ] ||
        lerobot-theia-distill --config-name="$recipe" output_dir="outputs/distill/$recipe" resume=true
done
