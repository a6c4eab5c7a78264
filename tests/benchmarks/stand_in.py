"""Stands in for the commands that the quality benchmark runs, in milliseconds: what they print and leave behind, no work.

What it is depends on the name it is called by. Each call is a line of `$STAND_IN_CALLS`. A file `dies_after` beside it makes
training fail after the step it names, once; `$STAND_IN_STEP_S` is what a step takes.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    name = Path(sys.argv[0]).name
    with Path(os.environ["STAND_IN_CALLS"]).open("a") as calls:
        calls.write(f"{name} {' '.join(sys.argv[1:])}\n")
    options = dict(each.lstrip("-+").split("=", 1) for each in sys.argv[1:] if "=" in each)
    {
        "record.py": record,
        "lerobot-edit-dataset": leave_out,
        "lerobot-theia-precompute": precompute,
        "lerobot-train": train,
        "lerobot-eval": evaluate,
    }[name](options)


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def record(options: dict[str, str]) -> None:
    meta = Path(options["root"]) / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps({"total_episodes": int(options["episodes"])}))


def leave_out(options: dict[str, str]) -> None:
    record({"root": options["new_root"], "episodes": "2"})


def precompute(options: dict[str, str]) -> None:
    cache = Path(json.loads(options["cache_root"])) / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "manifest.json").write_text(json.dumps({"identity": {"encoder": {"weights_sha256": "ab" * 32}}}))
    report = {"path": str(cache), "frames_encoded": 7, "frames_kept": 0, "frames_per_s": 3.5, "seconds": 2.0}
    Path(json.loads(options["report"])).write_text(json.dumps(report))


def train(options: dict[str, str]) -> None:
    done = 0
    if options.get("resume") == "true":
        config = Path(options["config_path"])
        done = int(config.parents[1].name)
        options = json.loads(config.read_text())
    output, steps = Path(options["output_dir"]), int(options["steps"])
    if output.exists() and not done:
        sys.exit(f"Output directory {output} already exists and resume is False")
    output.mkdir(parents=True, exist_ok=True)
    say("importing\n")
    say("Training:   0%|          | 0/1 [00:00<?, ?step/s]INFO Start offline training on a fixed dataset\n")
    for step in range(done + 1, steps + 1):
        time.sleep(float(os.environ.get("STAND_IN_STEP_S", "0")))
        say(f"\rTraining:  1%|█         | {step - done}/{steps - done} [00:00<00:00, 9step/s]")
        if step % int(options["log_freq"]) == 0:
            say(f"INFO step:{step} loss:{1 / step:.3f} updt_s:0.1\n")
        if "save_freq" in options and (step % int(options["save_freq"]) == 0 or step == steps):
            save(output, step, options)
        dies = Path(os.environ["STAND_IN_CALLS"]).with_name("dies_after")
        if dies.is_file() and int(dies.read_text()) == step:
            dies.unlink()
            sys.exit("RuntimeError: the disk is full")


def save(output: Path, step: int, options: dict[str, str]) -> None:
    say(f"INFO Checkpoint policy after step {step}\n")
    checkpoint = output / "checkpoints" / f"{step:06d}"
    for part in ("pretrained_model", "training_state"):
        (checkpoint / part).mkdir(parents=True, exist_ok=True)
    (checkpoint / "pretrained_model" / "train_config.json").write_text(json.dumps(options))
    last = checkpoint.with_name("last")
    last.unlink(missing_ok=True)
    last.symlink_to(checkpoint.name)


def evaluate(options: dict[str, str]) -> None:
    assert (Path(options["policy.path"]) / "train_config.json").is_file()
    output, episodes = Path(options["output_dir"]), int(options["eval.n_episodes"])
    output.mkdir(parents=True)
    videos = [output / f"eval_episode_{number}.mp4" for number in range(min(10, episodes))]
    for video in videos:
        video.write_bytes(b"film")
    successes = [number % 3 == 0 for number in range(episodes)]
    metrics = {
        "max_rewards": [1.0 if won else 0.25 for won in successes],
        "successes": successes,
        "video_paths": [str(video) for video in videos],
    }
    info = {"per_task": [{"metrics": metrics}], "overall": {"eval_s": 2.0 * episodes}}
    (output / "eval_info.json").write_text(json.dumps(info))


if __name__ == "__main__":
    main()
