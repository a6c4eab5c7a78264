#!/usr/bin/env python
"""Sum up a quickstart run: a table, a JSON report, a picture of the tokens, a video of a rollout."""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.plan import format_bytes
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.pictures import principal_colours

PICTURED_FRAMES = 8
TILE = 168
"""Side of a picture tile in pixels: 12 per token."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="outputs/quickstart")
    arguments.add_argument("--seconds", type=int, required=True, help="how long the run took so far")
    options = arguments.parse_args()

    folder: Path = options.folder
    precompute = json.loads((folder / "precompute.json").read_text())
    cache = FeatureCache.open(precompute["path"])
    report = {
        "encoder": cache.manifest.encoder_name,
        "encoder_note": cache.manifest.encoder_note,
        "demonstrations": cache.manifest.identity.dataset.num_episodes,
        "frames": cache.manifest.num_frames,
        # An earlier run may have made the cache; then there is no speed to report.
        "precompute_frames_per_s": precompute["frames_per_s"] or None,
        "cache_bytes": cache.manifest.num_bytes,
        **training_speed((folder / "train.log").read_text()),
        **evaluation(folder / "eval"),
        "seconds": options.seconds,
    }
    picture = folder / "tokens_pca.png"
    draw_tokens(cache, folder / "pusht_expert").save(picture)
    video = pick_video(folder / "eval")
    shutil.copyfile(video, folder / "rollout.mp4")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    print(f"\n{folder}/report.json   {picture}   {folder}/rollout.mp4")


def training_speed(log: str) -> dict[str, float]:
    """Steps per second from lerobot-train's own timings, the first logged window left out as warm-up."""
    windows = [
        (float(update), float(data)) for update, data in re.findall(r"updt_s:([\d.]+) data_s:([\d.]+)", log)
    ]
    losses = [float(loss) for loss in re.findall(r" loss:([\d.]+)", log)]
    steady = windows[1:] or windows
    step_s = float(np.mean([update + data for update, data in steady]))
    return {
        "train_steps_per_s": 1 / step_s,
        "waiting_for_data_share": float(np.mean([data for _, data in steady])) / step_s,
        "final_loss": losses[-1],
    }


def evaluation(folder: Path) -> dict[str, float]:
    overall = json.loads((folder / "eval_info.json").read_text())["overall"]
    return {
        "rollouts": overall["n_episodes"],
        "success_percent": overall["pc_success"],
        # gym-pusht's reward is the covered share of the goal over 0.95, the share that counts as success.
        "mean_max_coverage": overall["avg_max_reward"],
    }


def pick_video(folder: Path) -> Path:
    """Of the recorded rollouts, the one that covered the goal best."""
    task = json.loads((folder / "eval_info.json").read_text())["per_task"][0]["metrics"]
    rewards = task["max_rewards"][: len(task["video_paths"])]
    return Path(task["video_paths"][int(np.argmax(rewards))])


def draw_tokens(cache: FeatureCache, dataset_root: Path) -> Image.Image:
    """Frames over their 14x14 tokens, coloured by the first three principal components over the frames shown."""
    dataset = LeRobotDataset(cache.manifest.identity.dataset.repo_id, root=dataset_root, return_uint8=True)
    last = dataset.meta.episodes["dataset_to_index"][0] - 1
    indices = np.linspace(0, last, PICTURED_FRAMES).astype(int).tolist()
    frames = torch.stack([dataset[index][cache.cameras[0]] for index in indices])  # (F, 3, H, W) uint8
    tokens = TheiaEncoder.from_pretrained(cache.manifest.encoder_name, translators=False)(frames)  # (F, N, D)
    rows = [
        [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames],
        [Image.fromarray(colours.numpy()) for colours in principal_colours(tokens)],
    ]
    sheet = Image.new("RGB", (TILE * len(indices), TILE * len(rows)))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            method = Image.Resampling.BILINEAR if y == 0 else Image.Resampling.NEAREST
            sheet.paste(tile.resize((TILE, TILE), method), (x * TILE, y * TILE))
    return sheet


def table(report: dict) -> str:
    speed = report["precompute_frames_per_s"]
    rows = [
        ("encoder", report["encoder_note"]),
        ("demonstrations", f"{report['demonstrations']} episodes, {report['frames']:,} frames"),
        ("precompute", f"{speed:.1f} frames/s" if speed else "kept from an earlier run"),
        ("cache", format_bytes(report["cache_bytes"])),
        (
            "training",
            f"{report['train_steps_per_s']:.1f} steps/s, {report['waiting_for_data_share']:.1%} waiting for data",
        ),
        ("success rate", f"{report['success_percent']:.0f} % of {report['rollouts']} rollouts"),
        ("mean max coverage", f"{report['mean_max_coverage']:.2f} (1 is success)"),
        ("time", f"{report['seconds'] // 60} min {report['seconds'] % 60} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
    main()
