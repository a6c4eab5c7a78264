"""Quality of policies in simulation: what is not done yet of the experiments asked for, one after the other.

    python benchmarks/quality/run.py suite=pusht question=headline
    python benchmarks/quality/run.py suite=pusht arms=[theia_act,act] minutes=[30] seeds=[1] demonstrations=[100]
    python benchmarks/quality/run.py question=demonstrations action=status
    python benchmarks/quality/run.py question=heads action=commands

An experiment is the real commands in processes of their own: the recorder and lerobot-theia-precompute once,
lerobot-train, lerobot-eval. Each leaves a JSON file under benchmarks/results/ when it is done, and is not run again with
the same settings; a training that was interrupted goes on from its last checkpoint. Settings: configs/run.yaml.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import hydra
from omegaconf import DictConfig, OmegaConf

CHECKOUT = Path(__file__).resolve().parents[2]


@hydra.main(version_base="1.3", config_path="configs", config_name="run")
def main(config: DictConfig) -> None:
    from benchmarks.quality.experiments import ERRORS, start

    try:
        start(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    except ERRORS as error:
        sys.exit(f"quality: {error}")


def stop(number: int, frame: FrameType | None) -> None:
    """End in order: the command that runs is ended, too."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.path[0] = str(CHECKOUT)  # this folder's modules are benchmarks.quality's, and nobody else's
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGTERM, stop)
    main()
