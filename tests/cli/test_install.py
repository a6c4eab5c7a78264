"""The plugin as it is installed: LeRobot finds it, and commands work outside any checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DISCOVER = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs import PreTrainedConfig
for kind in ("theia_act", "theia_diffusion"):
    print(PreTrainedConfig.get_choice_class(kind).__module__)
import lerobot_theia
print(lerobot_theia.__file__)
"""


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = {"PATH": str(Path(sys.executable).parent), "HF_HUB_OFFLINE": "1", "HOME": str(cwd)}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    process = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_importing_the_package_imports_nothing_else(tmp_path):
    heavy = "import sys, lerobot_theia; print(sorted({'torch', 'hydra', 'transformers', 'lerobot'} & sys.modules.keys()))"
    assert python("-c", heavy, cwd=tmp_path).strip() == "[]"


@pytest.mark.slow
def test_registering_the_policies_imports_no_hydra_and_touches_no_gpu(tmp_path):
    light = (
        "import sys, lerobot_policy_theia, torch; "
        "print('hydra' in sys.modules, torch.cuda.is_initialized(), 'lerobot_theia.encoder.theia' in sys.modules)"
    )
    assert python("-c", light, cwd=tmp_path).strip() == "False False False"


@pytest.mark.slow
def test_lerobot_finds_the_editable_install(tmp_path):
    found = python("-c", DISCOVER, cwd=tmp_path).split()
    assert found[:2] == [
        "lerobot_theia.policies.theia_act.configuration_theia_act",
        "lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion",
    ]
    assert found[2] == str(ROOT / "lerobot_theia/__init__.py")


@pytest.mark.slow
def test_lerobot_finds_the_wheel_and_its_commands_work_outside_a_checkout(tmp_path):
    # What `pip install .` installs is this wheel.
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("lerobot_policy_theia-*.whl")
    site = tmp_path / "site"
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    found = python("-c", DISCOVER, cwd=tmp_path, path=site).split()
    assert found[2] == str(site / "lerobot_theia/__init__.py")
    configuration = python("-m", "lerobot_theia.scripts.precompute", "--cfg", "job", cwd=tmp_path, path=site)
    assert "name: theia-tiny-cdiv" in configuration
    root = "from lerobot_theia.cache.root import default_cache_root as root; print(root())"
    assert str(site) not in python("-c", root, cwd=tmp_path, path=site)
    assert (site / "lerobot_theia/assets/pusht_expert_actions.npz").is_file()
    assert (site / "lerobot_theia/assets/theia-tiny-sim/model.safetensors").is_file()
