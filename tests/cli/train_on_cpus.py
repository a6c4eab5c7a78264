"""`lerobot-train` in several processes on CPUs, which ends each time. What it does is LeRobot's, unmodified.

LeRobot's last step is a barrier, and then its model goes, which is the last to hold the group of processes. Torch (2.11, gloo) waits
for the group's thread then without letting go of Python's lock, which that thread may just need to drop the barrier's tensor: about
one run in thirty never ended. So the thread is given its time.
"""

import time

from accelerate import Accelerator
from lerobot.scripts.lerobot_train import main as lerobots_main

FOR_THE_THREAD_S = 0.5


def main() -> None:
    end_training = Accelerator.end_training

    def later(self: Accelerator) -> None:
        time.sleep(FOR_THE_THREAD_S)
        end_training(self)

    Accelerator.end_training = later
    lerobots_main()


if __name__ == "__main__":
    main()
