"""`compile`: the same tokens to rounding, whatever the size of a shard's last batch; eager where it fails."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lerobot_theia.cache import FeatureCache
from tests.cache.helpers import TOP, digests, run
from tests.datasets import make_dataset
from tests.faults.workshop import make_encoder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("compile") / "dataset",
        episodes=(9, 8),
        cameras={TOP: (32, 32)},
        use_videos=False,
    )


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An encoder of one layer; shards of 6, 6 and 5 frames: batches of 4, 2, 4, 2, 4 and 1."""
    encoder = make_encoder(tmp_path_factory.mktemp("compile") / "encoder")
    return {"encoder": str(encoder), "dtype": "float32", "batch_size": 4}


@pytest.mark.slow
def test_compiled_tokens_are_the_eager_ones_to_rounding(
    dataset: Path, asked: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eager, _ = run(dataset, tmp_path / "eager", **asked)
    compiled, _ = run(dataset, tmp_path / "compiled", compile=True, **asked)
    tokens = [FeatureCache.open(report.path).gather(TOP, range(17)) for report in (eager, compiled)]
    torch.testing.assert_close(*tokens, rtol=0, atol=2e-5)
    assert eager.path.name == compiled.path.name, "it is the same cache"
    assert "not compiled" not in caplog.text


def test_batches_of_every_size_are_compiled_once(
    dataset: Path, asked: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(forward, **_: object):
        def compiled(pixels: Tensor) -> Tensor:
            sizes.append(len(pixels))
            return forward(pixels)

        return compiled

    eager, _ = run(dataset, tmp_path / "eager", **asked)
    monkeypatch.setattr(torch, "compile", counting)
    padded, _ = run(dataset, tmp_path / "padded", compile=True, **asked)
    assert sizes == [4] * 6
    tokens = [FeatureCache.open(report.path).gather(TOP, range(17)) for report in (eager, padded)]
    torch.testing.assert_close(*tokens, rtol=0, atol=2e-5)


def test_where_it_fails_one_warning_says_why_and_the_run_goes_on(
    dataset: Path,
    asked: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(forward, **_: object):
        def compiled(pixels: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler on this machine")

        return compiled

    eager, _ = run(dataset, tmp_path / "eager", **asked)
    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING, logger="lerobot_theia.cache"):
        report, _ = run(dataset, tmp_path / "compiled", compile=True, **asked)
    warnings = [each.message for each in caplog.records if "compile" in each.message]
    assert warnings == [
        "compile: not compiled, running eagerly: RuntimeError: no C++ compiler on this machine"
    ]
    assert digests(report.path) == digests(eager.path)


def test_a_full_device_is_no_failure_to_compile(
    dataset: Path, asked: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(forward, **_: object):
        def compiled(pixels: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("the device is full")

        return compiled

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        run(dataset, tmp_path, compile=True, **asked)
