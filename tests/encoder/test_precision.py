"""On a GPU the encoder multiplies in TF32 whatever the process allows, and leaves the process's choice as it was."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lerobot_theia.encoder import theia
from lerobot_theia.encoder.precision import tf32
from lerobot_theia.encoder.preprocess import preprocess
from lerobot_theia.encoder.theia import TheiaEncoder

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BACKENDS = (torch.backends.cuda.matmul, torch.backends.cudnn)


def allowed() -> list[bool]:
    """Whether matrix products and convolutions may use TF32. The switches are there without a GPU, too."""
    return [backend.allow_tf32 for backend in BACKENDS]


@pytest.fixture(autouse=True)
def own_switches() -> Iterator[None]:
    before = allowed()
    yield
    for backend, value in zip(BACKENDS, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("matmul", [True, False])
def test_a_gpu_multiplies_in_tf32_and_the_process_keeps_its_choice(matmul: bool, conv: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv
    with tf32(CPU):
        assert allowed() == [matmul, conv]
    with tf32(CUDA):
        assert allowed() == [True, True]
    assert allowed() == [matmul, conv]
    with pytest.raises(KeyError), tf32(CUDA):
        raise KeyError
    assert allowed() == [matmul, conv]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_a_process_that_uses_torchs_newer_switch_keeps_its_choice(precision: str) -> None:
    # The opposite, so that the older one cannot be read.
    torch.backends.cuda.matmul.allow_tf32 = precision == "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        allowed()
    with tf32(CUDA):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == precision
    torch.backends.cuda.matmul.allow_tf32 = False  # both agree again


def test_the_encoder_multiplies_so(
    random_tiny: TheiaEncoder, frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    hook = random_tiny.backbone.register_forward_pre_hook(lambda module, args: seen.append(allowed()))
    monkeypatch.setattr(theia, "tf32", lambda device: tf32(CUDA))
    torch.backends.cuda.matmul.allow_tf32 = False
    random_tiny(frames[:1])
    random_tiny.encode_preprocessed(preprocess(frames[:1]))
    hook.remove()
    assert seen == [[True, True]] * 2
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_encoder_compiles_whole(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    compiled = torch.compile(random_tiny.encode_preprocessed, backend="eager", fullgraph=True)
    pixels = preprocess(frames[:1])
    assert torch.equal(compiled(pixels), random_tiny.encode_preprocessed(pixels))
