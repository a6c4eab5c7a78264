"""`lerobot-train`, unmodified, that also tells what it does, in files that begin with $TELL:

.losses     number and loss of each logged step, the loss in full: LeRobot prints three decimals
.samples.0  the samples of each batch that process 0 made, and so on

It goes no further than step $STAY_AT, if there is one, and waits there to be killed.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from lerobot.utils.logging_utils import MetricsTracker

from lerobot_theia.data import serve
from lerobot_theia.data.feature_dataset import FeatureDataset
from tests.cli.train_on_cpus import main


class TellingRecord(logging.LogRecord):
    def __init__(
        self, name: str, level: int, path: str, line: int, msg: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(name, level, path, line, msg, *args, **kwargs)
        if isinstance(msg, MetricsTracker) and "loss" in msg.metrics:
            tell("losses", f"{msg.steps} {msg.loss.avg.hex()}")
            if msg.steps == int(os.environ.get("STAY_AT", "0")):
                time.sleep(3600)


class TellingDataset(FeatureDataset):
    def gather(self, indices: list[int], *how: Any) -> dict[str, Any]:
        tell(f"samples.{os.environ.get('RANK', '0')}", " ".join(map(str, indices)))
        return super().gather(indices, *how)


def tell(what: str, line: str) -> None:
    with Path(f"{os.environ['TELL']}.{what}").open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":  # loader workers import this file again
    logging.setLogRecordFactory(TellingRecord)
    serve.FeatureDataset = TellingDataset
    main()
