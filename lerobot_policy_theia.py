"""LeRobot's way in: it imports each distribution named `lerobot_policy_*` under its own name.

Importing it registers `theia_act` and `theia_diffusion`; do so in scripts of your own that load their checkpoints.
"""

from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig
from lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion import TheiaDiffusionConfig

__all__ = ["TheiaACTConfig", "TheiaDiffusionConfig"]
