"""Names under which tokens travel in a batch and in `meta.stats`.

The camera key itself stays what it is in LeRobot, an image; tokens have keys of their own beside it. These do
not begin with `observation.images`, where LeRobot's processors expect pictures and add a batch dimension to
whatever has three.
"""

from lerobot.utils.constants import OBS_PREFIX


def tokens_key(camera: str) -> str:
    """`observation.images.top` -> `observation.theia.images.top`: tokens (B, [S,] N, D)."""
    return f"{OBS_PREFIX}theia.{camera.removeprefix(OBS_PREFIX)}"


def frame_key(camera: str) -> str:
    """Frames (B, [S]) int64 by their rows in the table of tokens that the policy has on its device already."""
    return f"{OBS_PREFIX}theia_frame.{camera.removeprefix(OBS_PREFIX)}"


def scale_key(camera: str) -> str:
    """Scales (B, [S,] N) of int8 tokens."""
    return f"{OBS_PREFIX}theia_scale.{camera.removeprefix(OBS_PREFIX)}"
