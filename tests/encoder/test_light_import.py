"""Names and specs are read by command lines and configs, which must not wait for torch."""

import subprocess
import sys

import pytest

import lerobot_theia.encoder


@pytest.mark.parametrize("module", ["lerobot_theia.encoder.names", "lerobot_theia.encoder.spec"])
def test_no_heavy_import(module: str) -> None:
    # The parent package registers LeRobot policies when imported; a bare one in its place shows what the
    # encoder package itself asks for.
    code = f"""
import sys, types
parent = sys.modules["lerobot_theia"] = types.ModuleType("lerobot_theia")
parent.__path__ = {list(lerobot_theia.__path__)!r}
import {module}
print([name for name in ("torch", "transformers", "numpy", "lerobot") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_export_resolves() -> None:
    for name in lerobot_theia.encoder.__all__:
        assert getattr(lerobot_theia.encoder, name) is not None
        assert name in dir(lerobot_theia.encoder)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = lerobot_theia.encoder.no_such_thing
