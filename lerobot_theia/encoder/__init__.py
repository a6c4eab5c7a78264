"""Theia: the frozen vision encoder that turns camera frames into patch tokens.

Importing this package stays light (no torch, no transformers): what it exports is loaded at first use.
The preprocessing function itself is `lerobot_theia.encoder.preprocess.preprocess`; it is not exported here,
because a function and its own module cannot both be called `encoder.preprocess`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lerobot_theia.encoder.names import PUBLISHED_LICENSE, known_encoders
    from lerobot_theia.encoder.preprocess import PREPROCESSING, to_uint8
    from lerobot_theia.encoder.spec import EncoderSpec
    from lerobot_theia.encoder.theia import TheiaEncoder
    from lerobot_theia.encoder.weights_hash import weights_sha256

__all__ = [
    "PREPROCESSING",
    "PUBLISHED_LICENSE",
    "EncoderSpec",
    "TheiaEncoder",
    "known_encoders",
    "to_uint8",
    "weights_sha256",
]

_MODULE_OF = {
    "PREPROCESSING": "preprocess",
    "PUBLISHED_LICENSE": "names",
    "EncoderSpec": "spec",
    "TheiaEncoder": "theia",
    "known_encoders": "names",
    "to_uint8": "preprocess",
    "weights_sha256": "weights_hash",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
