"""Augmented views: what a frozen encoder saw can be neither cropped nor recoloured later, so it is done before.

View 0 of a frame is the frame. Each other view moves, scales, relights, recolours and blurs it, in one way for all frames
of an episode: so consecutive frames of an observation window go together, as those of one camera do. Which way is
computed from the seed, the camera, the episode and the view (`draw`), and needs to be kept nowhere. `views.py` does it.
"""

import hashlib
from dataclasses import dataclass, fields

MAX_VIEWS = 64


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How far views may go. A value is drawn evenly from the range given, for each of them independently."""

    seed: int = 0
    shift: float = 0.06
    """-shift..shift of the picture's side, in x and in y; edges are repeated."""
    scale: float = 0.06
    """Magnified by 1 - scale..1 + scale, around the middle."""
    brightness: float = 0.2
    """Light: values times 1 - brightness..1 + brightness."""
    contrast: float = 0.2
    """Distance from the mean grey times 1 - contrast..1 + contrast."""
    saturation: float = 0.2
    """Distance from grey times 1 - saturation..1 + saturation."""
    hue: float = 0.02
    """-hue..hue of the colour circle."""
    blur: float = 0.6
    """Sigma of a Gaussian, 0..blur pixels of the encoder's input."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= limit:
                raise ValueError(f"augment.{name}={value!r} must be a number of 0 to {limit}")
            object.__setattr__(self, name, float(value))
        if type(self.seed) is not int or not 0 <= self.seed < 2**53:
            raise ValueError(f"augment.seed={self.seed!r} must be a whole number of 0 to 2**53 - 1")


LIMITS = {"shift": 0.5, "scale": 0.5, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5, "blur": 10}


@dataclass(frozen=True, kw_only=True)
class View:
    """What happens to the pictures of one camera in one episode; names and units are those of `Augment`."""

    dx: float
    dy: float
    scale: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float


def draw(augment: Augment, camera: str, episode: int, view: int) -> View:
    """The parameters of a view, which is not 0: the same on every machine."""

    def number(name: str) -> float:
        """0 <= number < 1: the first 53 bits of a SHA-256."""
        text = f"{augment.seed}/{camera}/{episode}/{view}/{name}"
        return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53

    def around(name: str, middle: float, reach: float) -> float:
        return middle + reach * (2 * number(name) - 1)

    factors = {name: around(name, 1, getattr(augment, name)) for name in FACTORS}
    return View(
        dx=around("dx", 0, augment.shift),
        dy=around("dy", 0, augment.shift),
        hue=around("hue", 0, augment.hue),
        blur=augment.blur * number("blur"),
        **factors,
    )


FACTORS = ("scale", "brightness", "contrast", "saturation")


def check_views(views: object) -> None:
    """Raises ValueError."""
    if type(views) is not int or not 1 <= views <= MAX_VIEWS:
        raise ValueError(f"augment.views={views!r} must be a whole number of 1 to {MAX_VIEWS}")


def from_settings(values: object) -> tuple[int, Augment]:
    """`augment.*` of a config: the number of views, and the rest. Raises ValueError."""
    if not isinstance(values, dict):
        raise ValueError(
            f"augment={values!r} is no group of settings; for views of each frame set augment.views"
        )
    known = {"views", *(field.name for field in fields(Augment))}
    if unknown := values.keys() - known:
        raise ValueError(f"augment has no {sorted(unknown)}; it has {sorted(known)}")
    values = dict(values)
    views = values.pop("views", 1)
    check_views(views)
    plain = Augment()
    changed = [f"augment.{name}={value!r}" for name, value in values.items() if value != getattr(plain, name)]
    augment = Augment(**values)
    if views == 1 and changed:
        raise ValueError(
            f"{', '.join(changed)} would change nothing: view 0 is the plain frame. Set augment.views=2 or more"
        )
    return views, augment
