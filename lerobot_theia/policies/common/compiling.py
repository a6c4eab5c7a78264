"""torch.compile with a way back."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lerobot_theia.encoder.names import notice_once


class CompiledForward:
    """A module's `forward`, compiled at its first call; eager, after one warning, where that fails.

    Names in the module's `state_dict` stay as they are, so checkpoints load with and without compilation.
    """

    def __init__(self, forward: Callable[..., Any], mode: str) -> None:
        self.eager, self.mode = forward, mode
        self.compiled: Callable[..., Any] | None = torch.compile(forward, mode=mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledForward":
        """Of the copied module; what is compiled belongs to the original."""
        return CompiledForward(copy.deepcopy(self.eager, memo), self.mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(*args, **kwargs)
            except Exception as error:
                # An error of the network itself comes again, and plainly, from the eager call. The encoder and the
                # network usually fail for the same reason, which is told once.
                notice_once(f"compile_model: not compiled, running eagerly: {error}")
                self.compiled = None
        return self.eager(*args, **kwargs)


def compile_forward(module: nn.Module, mode: str) -> None:
    module.forward = CompiledForward(module.forward, mode)  # type: ignore[method-assign]
