"""lerobot-theia: frozen Theia features as the vision backbone of LeRobot's ACT and Diffusion Policy.

    encoder/   frames -> patch tokens
    cache/     tokens of a whole dataset, encoded once, on disk
    data/      the dataset that serves tokens in place of frames, and the seam into lerobot-train
    policies/  theia_act, theia_diffusion
    demos/     simulators -> LeRobotDatasets
    scripts/   commands

Data goes through the rooms in this order, and none imports from one further down. Importing this package imports
nothing else: `lerobot_policy_theia`, which LeRobot imports by itself, registers the policies.
"""

__version__ = "0.1.0"
