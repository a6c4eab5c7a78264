"""Nothing that is read can run code: a lint rule refuses the calls that would, this file the arguments that would."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("lerobot_theia", "scripts", "benchmarks", "tests")

VIOLATIONS = {
    "torch.load": "import torch\n\ntorch.load('weights.pt')\n",
    "torch.load by name": "from torch import load\n\nload('weights.pt')\n",
    "torch.load weights only": "import torch\n\ntorch.load('weights.pt', weights_only=True)\n",
    "torch.jit.load": "import torch\n\ntorch.jit.load('model.pt')\n",
    "torch.hub.load": "import torch\n\ntorch.hub.load('a/b', 'c')\n",
    "pickle": "import pickle\n\npickle.loads(b'')\n",
    "pickle by name": "from pickle import loads\n\nloads(b'')\n",
    "cloudpickle": "import cloudpickle\n\ncloudpickle.loads(b'')\n",
    "dill": "import dill\n\ndill.loads(b'')\n",
    "joblib": "import joblib\n\njoblib.load('x')\n",
    "marshal": "import marshal\n\nmarshal.loads(b'')\n",
    "shelve": "import shelve\n\nshelve.open('x')\n",
    "pandas.read_pickle": "import pandas as pd\n\npd.read_pickle('x')\n",
    "yaml.load": "import yaml\n\nyaml.load('a: 1', Loader=yaml.Loader)\n",
    "eval": "eval('1 + 1')\n",
    "exec": "exec('x = 1')\n",
    "runpy": "import runpy\n\nrunpy.run_path('x.py')\n",
}
UNSAFE_ARGUMENTS = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True}


def lint(code: str, name: str) -> str:
    """What ruff, with this project's settings, says to `code` in a file of that name."""
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format=concise"]
    done = subprocess.run(
        [*ruff, f"--stdin-filename={name}", "-"], cwd=CHECKOUT, input=code, text=True, capture_output=True
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("place", ["lerobot_theia/cache/new.py", "tests/new.py", "benchmarks/new.py"])
def test_the_lint_rule_refuses_what_may_run_code(place: str) -> None:
    for name, code in VIOLATIONS.items():
        said = lint(code, place)
        assert any(rule in said for rule in ("TID251", "S102", "S301", "S302", "S307", "S506")), (name, said)


def test_the_lint_rule_lets_json_and_safetensors_pass() -> None:
    code = (
        "import json\n\nimport numpy as np\nimport yaml\nfrom safetensors.torch import load_file\n\n"
        "json.loads('1')\nyaml.safe_load('1')\nload_file('x')\nnp.load('x')\n"
    )
    assert "All checks passed" in lint(code, "lerobot_theia/cache/new.py")


def unsafe_arguments(code: str) -> Iterator[str]:
    """`line: name=value` for each argument that asks for code, however it is passed, unless it is plainly off."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_ARGUMENTS:
            safe = isinstance(node.value, ast.Constant) and node.value.value is not UNSAFE_ARGUMENTS[node.arg]
            if not safe:
                yield f"{node.value.lineno}: {node.arg}={ast.unparse(node.value)}"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in UNSAFE_ARGUMENTS:
                    yield f"{key.lineno}: {key.value!r}: {ast.unparse(value)}"


def test_no_argument_asks_for_code() -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}:{each}"
        for folder in SOURCES
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        if path != Path(__file__).resolve()
        for each in unsafe_arguments(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)",
        "AutoModel.from_pretrained(x, **{'trust_remote_code': True})",
        "np.load(x, allow_pickle=True)",
        "load(x, weights_only=False)",
    ],
)
def test_such_an_argument_would_be_found(code: str) -> None:
    assert list(unsafe_arguments(code))


@pytest.mark.parametrize("code", ["np.load(x, allow_pickle=False)", "load(x, weights_only=True)"])
def test_plainly_off_is_let_pass(code: str) -> None:
    assert not list(unsafe_arguments(code))
