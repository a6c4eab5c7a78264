"""LeRobot's ACT and Diffusion Policy with Theia tokens in the place of their ResNet."""
