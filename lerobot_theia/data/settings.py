"""The flags both policies share: which encoder, and where its tokens come from."""

from dataclasses import dataclass
from typing import cast

from lerobot.configs import PreTrainedConfig

from lerobot_theia.cache.augment import MAX_VIEWS
from lerobot_theia.encoder.spec import EncoderSpec

FEATURES = ("auto", "cached", "online")
CACHE_DTYPES = ("float32", "float16", "bfloat16", "int8")
VERIFICATIONS = ("quick", "full")
RESIDENCIES = ("auto", "disk", "memory", "device")
DEFAULT_ENCODER = "theia-tiny-cdiv"


@dataclass
class FeatureSettings:
    """Mixed into a policy's config, so that each field is a `--policy.*` flag.

    Args:
        encoder: Theia encoder: a short name (`theia-tiny-cdiv`, `random-tiny`, ...), a Hub id, or a folder in the
            published layout.
        encoder_revision: Hub revision of the encoder.
        features: Where tokens come from in training. `cached`: from the feature cache, and it is an error if none
            fits. `online`: frames are decoded and encoded in each step. `auto`: cached if a cache fits, else online.
        cache_root: Folder of feature caches, or one cache. None: $LEROBOT_THEIA_CACHE, else the checkout's `cache/`,
            else `theia/` in LeRobot's home.
        cache_dtype: Take only a cache of this storage type (`float16`, `int8`, ...). None takes the most precise.
        cache_views: Train on so many views of each frame, the plain one and augmented ones, of a cache that was made with at
            least as many (`augment.views` of lerobot-theia-precompute). None takes all that the cache has, 1 the plain
            one. Held-out loss and rollouts always see plain frames.
        cache_verify: How a cache is checked before training. `quick`: manifest, and size and header of each shard, which
            finds whatever is missing, cut short or swapped. `full`: every byte, which finds any changed bit.
        cache_residency: Where tokens are while training reads them. `disk`: memory-mapped files. `memory`: all of them
            in memory. `device`: all of them on the policy's device, where a batch is an index. `auto`: the fastest that
            fits with room to spare; on a CPU, workers read best from disk.
        token_pool: Side of the average-pooling window over the 14x14 token grid; 2 gives 7x7. Applies to cached and
            live tokens alike.
        encoder_spec: Set by the policy, not by users: the encoder that a checkpoint carries.
    """

    encoder: str = DEFAULT_ENCODER
    encoder_revision: str | None = None
    features: str = "auto"
    cache_root: str | None = None
    cache_dtype: str | None = None
    cache_views: int | None = None
    cache_verify: str = "quick"
    cache_residency: str = "auto"
    token_pool: int = 1
    encoder_spec: EncoderSpec | None = None

    def __post_init__(self) -> None:
        from lerobot_theia.data import seam

        super().__post_init__()  # type: ignore[misc]
        if self.features not in FEATURES:
            raise ValueError(f"features={self.features!r}; choose one of {', '.join(FEATURES)}")
        if self.cache_dtype not in (None, *CACHE_DTYPES):
            raise ValueError(f"cache_dtype={self.cache_dtype!r}; choose one of {', '.join(CACHE_DTYPES)}")
        if self.cache_verify not in VERIFICATIONS:
            raise ValueError(f"cache_verify={self.cache_verify!r}; choose one of {', '.join(VERIFICATIONS)}")
        if self.cache_residency not in RESIDENCIES:
            raise ValueError(
                f"cache_residency={self.cache_residency!r}; choose one of {', '.join(RESIDENCIES)}"
            )
        if self.cache_views is not None and not 1 <= self.cache_views <= MAX_VIEWS:
            raise ValueError(f"cache_views={self.cache_views} must be 1 to {MAX_VIEWS}, or left out")
        if self.token_pool < 1:
            raise ValueError(f"token_pool={self.token_pool} must be at least 1")
        # A Theia config exists, so training may follow; nobody else's training is touched.
        seam.install()

    def take_from(self, checkpoint: "FeatureSettings") -> None:
        """Encoder and inputs of a checkpoint whose policy is made from these settings, where they were not read from it
        (`--policy.type=... --policy.pretrained_path=...`). What flags name is left, to be compared."""
        self.encoder_spec = checkpoint.encoder_spec
        if self.encoder == DEFAULT_ENCODER:
            self.encoder, self.encoder_revision = checkpoint.encoder, checkpoint.encoder_revision
        mine, its = cast(PreTrainedConfig, self), cast(PreTrainedConfig, checkpoint)
        if not mine.input_features:  # LeRobot would take the dataset's, in its order
            mine.input_features = dict(its.input_features or {})
