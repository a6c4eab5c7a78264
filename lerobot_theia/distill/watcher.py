"""What a training tells whoever watches it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Watcher:
    """Told what happens; does nothing. `scripts.distill` shows a bar and writes to wandb."""

    def begin(self, done: int, total: int) -> None:
        """Images seen by earlier sessions, images in all."""

    def advance(self, images: int) -> None: ...

    def log(self, line: Mapping[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def picture(self, step: int, path: Path) -> None: ...

    def end(self) -> None: ...
