"""`lerobot-train`, unmodified, that also writes the loss of each logged step in full: LeRobot prints three decimals.

The loss is taken from the object that LeRobot logs. One line per step in the file $TELL_LOSSES: its number, the loss.
"""

import logging
import os
from pathlib import Path
from typing import Any

from lerobot.scripts.lerobot_train import main
from lerobot.utils.logging_utils import MetricsTracker


class TellingRecord(logging.LogRecord):
    def __init__(
        self, name: str, level: int, path: str, line: int, msg: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(name, level, path, line, msg, *args, **kwargs)
        if isinstance(msg, MetricsTracker) and "loss" in msg.metrics:
            with Path(os.environ["TELL_LOSSES"]).open("a") as file:
                file.write(f"{msg.steps} {msg.loss.avg.hex()}\n")


if __name__ == "__main__":  # loader workers import this file again
    logging.setLogRecordFactory(TellingRecord)
    main()
