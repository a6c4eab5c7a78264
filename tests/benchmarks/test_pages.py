"""The generated pages say what the committed results say."""

import importlib
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("report", "performance.md"),
        ("probe_report", "probe.md"),
        ("reliability_report", "reliability.md"),
        ("quality.report", "quality.md"),
    ],
)
def test_a_committed_page_is_what_its_script_makes_of_the_results(
    script: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = CHECKOUT / "docs"
    arguments = []
    if script == "quality.report":
        module = importlib.import_module(f"benchmarks.{script}")
        arguments = ["--page", str(tmp_path / page)]
        (tmp_path / "videos").symlink_to(docs / "videos")  # what was filmed is linked
    else:
        monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
        module = importlib.import_module(script)
        monkeypatch.setattr(module, "PAGE", tmp_path / page)
        if script == "probe_report":
            (tmp_path / "images").symlink_to(docs / "images")  # drawn by the probe
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    module.main()
    made, committed = ((folder / page).read_text().splitlines() for folder in (tmp_path, docs))
    assert made == committed, f"{script.replace('.', '/')}.py makes it anew"
