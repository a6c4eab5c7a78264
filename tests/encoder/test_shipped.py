"""The encoder that comes with the package: small, free to use, of known origin, and there without network."""

import json
import logging
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

import lerobot_theia
from lerobot_theia.encoder import TheiaEncoder, known_encoders, names
from lerobot_theia.encoder.names import SHIPPED
from lerobot_theia.scripts.configs import config_folder

FOLDER = Path(lerobot_theia.__file__).parent / "assets" / "theia-tiny-sim"
PARTS = {
    "theia_tiny_sim": FOLDER / "earlier" / "theia_tiny_sim",
    "theia_tiny_sim_continued": FOLDER / "earlier" / "theia_tiny_sim_continued",
    "theia_tiny_sim_full_size": FOLDER,
}
"""Of its making, in order: recipe, and the folder of its provenance and log."""


@pytest.fixture(scope="module")
def encoder() -> TheiaEncoder:
    return TheiaEncoder.from_pretrained("theia-tiny-sim")


@pytest.fixture(scope="module")
def provenance() -> dict[str, Any]:
    return json.loads((FOLDER / "provenance.json").read_text())


def test_it_loads_without_network_under_either_spelling(
    encoder: TheiaEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theia-tiny-sim").mkdir()  # a name comes before a folder
    assert "theia-tiny-sim" in known_encoders()
    again = TheiaEncoder.from_pretrained("theia_tiny_sim")
    assert again.spec == encoder.spec
    assert again.spec.name == "theia-tiny-sim" and again.spec.trained


def test_it_is_a_theia_tiny_whose_tokens_are_finite(encoder: TheiaEncoder) -> None:
    assert encoder.spec.hidden_size == 192 and encoder.spec.num_layers == 12
    tokens = encoder(torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8))
    assert tokens.shape == (2, 196, 192) and tokens.isfinite().all()
    assert (tokens[0] - tokens[1]).abs().mean() > 1e-2


def test_there_is_nothing_to_warn_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_noticed", set())  # a warning comes once in a process
    TheiaEncoder.from_pretrained("theia-tiny-sim")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_has_no_revision() -> None:
    with pytest.raises(ValueError, match=r"revision 'main' .* comes with the package"):
        TheiaEncoder.from_pretrained("theia-tiny-sim", revision="main")


def test_it_is_small_and_free_to_use(encoder: TheiaEncoder, provenance: dict[str, Any]) -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    assert encoder.spec.license.startswith("Apache-2.0")
    assert provenance["commercial_use"] == "allowed" and provenance["corpus"]["skipped"] == []
    parts = [*provenance["corpus"]["sources"], *provenance["teachers"]]
    assert all(part["commercial_use"] == "allowed" for part in parts)


@pytest.fixture(scope="module")
def parts() -> list[dict[str, Any]]:
    return [json.loads((folder / "provenance.json").read_text()) for folder in PARTS.values()]


def test_its_provenance_is_of_these_weights(encoder: TheiaEncoder, provenance: dict[str, Any]) -> None:
    assert SHIPPED == ("theia-tiny-sim",)
    assert provenance["name"] == encoder.spec.name
    assert provenance["weights_sha256"] == encoder.spec.weights_sha256


def test_it_was_made_from_nothing_one_part_after_the_other(parts: list[dict[str, Any]]) -> None:
    assert parts[0]["student"]["init"] is None
    for before, part in pairwise(parts):
        assert part["student"]["init_weights_sha256"] == before["weights_sha256"]
    for part in parts:
        assert len(part["code"]["commit"]) == 40 and not part["code"]["uncommitted_changes"]


def test_it_saw_three_simulators_and_no_evaluation_seed(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        sources = {source["name"]: source for source in part["corpus"]["sources"]}
        assert sources.keys() == {"pusht", "metaworld", "aloha"}
        assert len(sources["metaworld"]["origin"]["tasks"]) >= 20
        assert part["corpus"]["evaluation_seeds"] == "100000 and up; no source used one"


@pytest.mark.parametrize(("recipe", "folder"), PARTS.items())
def test_the_command_that_made_it_still_has_its_settings(recipe: str, folder: Path) -> None:
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["command"][:2] == ["lerobot-theia-distill", f"--config-name={recipe}"]
    with hydra.initialize_config_dir(str(Path(config_folder(), "distill")), version_base="1.3"):
        composed = hydra.compose(recipe, ["output_dir=anywhere"])
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    for part in ("corpus", "student", "training", "teachers"):
        used, now = provenance["settings"][part], config[part]
        assert {key: used[key] for key in now} == now


def test_its_files_tell_nothing_of_the_machine_that_made_it() -> None:
    files = [file for file in FOLDER.rglob("*") if file.suffix in (".json", ".jsonl")]
    assert len(files) == 7
    for file in files:
        text = file.read_text()
        assert not [start for start in ("=/", '"/', "=~", "/home/", "/tmp/") if start in text]


def test_its_training_logs_fall() -> None:
    ends = []
    for folder in PARTS.values():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["validation"]["loss"] for line in lines if "validation" in line]
        validation = json.loads((folder / "provenance.json").read_text())["validation"]
        assert losses[0] == validation["first"]["loss"] > losses[-1] == validation["last"]["loss"]
        ends.append(losses[-1])
    assert ends == sorted(ends, reverse=True) and ends[0] < 0.1
