"""LeRobot's way in: it imports each distribution named `lerobot_policy_*` under its own name."""

import lerobot_theia  # noqa: F401  (registers `theia_act` and `theia_diffusion`)
