"""Arms: what is compared. Each is a small file of `configs/arm`."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lerobot_theia.cache.files import sha256_of_file
from lerobot_theia.encoder.locate import ASSETS, WEIGHTS_FILE
from lerobot_theia.encoder.names import SHIPPED, canonical_name, known_encoders

FOLDER = Path(__file__).with_name("configs") / "arm"


class ArmError(ValueError):
    """An arm that is not there, or asks for what this checkout cannot do."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A kind of policy, what it sees, and its flags."""

    name: str
    what: str
    policy: str
    """`--policy.type`"""
    sees: str
    """`pixels`, or `state`: the simulator's own."""
    num_workers: int
    """Of the loader. What was fastest on two cores, where that was measured (docs/performance.md); else 1 for frames."""
    encoder: str | None = None
    """Short name, Hub id or folder; None for policies that have no frozen encoder."""
    views: int = 1
    """Augmented views of each frame in the cache."""
    randomize: str = ""
    """Of the demonstrations: what looks different in each, as recorders have it; such as `light,camera`."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Further `--policy.*`."""
    optimization: Mapping[str, Any] | None = None
    """Flags of lerobot-train in the place of the suite's for this family."""

    def __post_init__(self) -> None:
        if self.sees not in ("pixels", "state"):
            raise ArmError(f"arm {self.name}: sees={self.sees!r}; choose pixels or state")
        if (self.encoder is None) != (self.family == self.policy):
            raise ArmError(
                f"arm {self.name}: policy={self.policy!r} does not go with encoder={self.encoder!r}"
            )
        if self.views < 1 or (self.views > 1 and self.encoder is None):
            raise ArmError(f"arm {self.name}: views={self.views}; 1, or more with an encoder")

    @property
    def family(self) -> str:
        """`act` or `diffusion`: arms of a family have the same sizes."""
        return self.policy.removeprefix("theia_")

    @property
    def encoder_file_sha256(self) -> str | None:
        """Of weights in a folder or in this package: they may be trained again under the same name."""
        if self.encoder is None:
            return None
        name = canonical_name(self.encoder)
        folder = ASSETS / name if name in SHIPPED else Path(self.encoder).expanduser()
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            return None
        status = weights.stat()
        return _sha256(weights, status.st_size, status.st_mtime_ns)

    @property
    def token_pool(self) -> int:
        return int(self.flags.get("token_pool", 1))


@functools.cache
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    """Of a file as it is since then."""
    return sha256_of_file(file)


def known_arms() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_arm(name: str) -> Arm:
    """An arm by the name of its file; `<arm>@<encoder>` is that arm with another encoder.

    Raises:
        ArmError: if there is no such arm, or it has no encoder to be exchanged.
    """
    stem, at, encoder = name.partition("@")
    arm = Arm(name=name, **_values(stem))
    if not at:
        return arm
    if arm.encoder is None or not encoder:
        raise ArmError(f"arm {name!r}: {stem} has no encoder to exchange, or none is named after @")
    what = f"{arm.what}, encoder {Path(encoder).name}"
    folder = Path(encoder).expanduser()
    if canonical_name(encoder) not in known_encoders() and folder.is_dir():
        encoder = str(folder.absolute())  # commands run in the checkout, wherever this was called from
    return dataclasses.replace(arm, encoder=encoder, what=what)


def _values(stem: str) -> dict[str, Any]:
    """Fields of an arm: its file over that which it is `like`."""
    path = FOLDER / f"{stem}.yaml"
    if stem not in known_arms():
        raise ArmError(f"no arm {stem!r}; there are {', '.join(known_arms())}")
    own = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(own, dict), path
    fields: dict[str, Any] = {str(key): value for key, value in own.items()}
    like = fields.pop("like", None)
    if like is None:
        return fields
    base = _values(like)
    return base | fields | {"flags": base.get("flags", {}) | fields.get("flags", {})}


def check_flags(policy: str, flags: Mapping[str, Any], arm: str) -> None:
    """Every flag is a field of the policy's config, in this checkout and with this LeRobot.

    Raises:
        ArmError: naming the flags that are not.
    """
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import factory  # noqa: F401  (registers LeRobot's)

    import lerobot_policy_theia  # noqa: F401  (registers the theia policies)

    fields = {each.name for each in dataclasses.fields(PreTrainedConfig.get_choice_class(policy))}
    if unknown := sorted(set(flags) - fields):
        raise ArmError(f"arm {arm}: {policy} has no --policy.{', --policy.'.join(unknown)} in this checkout")
