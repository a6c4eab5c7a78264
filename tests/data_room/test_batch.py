"""A batch on its way from a loader worker: what arrives is what was sent, for as long as it is kept."""

import copy
import itertools
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from lerobot_theia.data.batch import MAPPED, SMALL_BYTES, Batch, empty

LARGE = (4, SMALL_BYTES // 4)
KINDS = (torch.float32, torch.bfloat16, torch.int8)
BATCHES = 40


class Frames(Dataset):
    """Two large tensors and a small one per batch, full of its first index."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitems__(self, indices: list[int]) -> list[Batch]:
        shape = (len(indices), *LARGE[1:])
        pictures = {name: empty(shape, self.dtype).fill_(indices[0] % 100) for name in ("top", "wrist")}
        return [Batch(**pictures, index=torch.tensor(indices), task=["push"] * len(indices))]


def loader(dtype: torch.dtype = torch.float32, workers: int = 1, persistent: bool = True) -> DataLoader:
    return DataLoader(
        Frames(dtype), batch_size=4, num_workers=workers, multiprocessing_context="fork", persistent_workers=persistent
    )  # fmt: skip


def check(batch: dict[str, Tensor], number: int) -> None:
    assert type(batch) is Batch and list(batch) == ["top", "wrist", "index", "task"]
    assert (
        batch["index"].tolist() == list(range(4 * number, 4 * number + 4)) and batch["task"] == ["push"] * 4
    )
    for name in ("top", "wrist"):
        assert batch[name].shape == LARGE and (batch[name] == 4 * number % 100).all()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_arrive_as_they_were_sent(workers: int, dtype: torch.dtype) -> None:
    for number, batch in enumerate(loader(dtype, workers)):
        check(batch, number)
        assert batch["top"].dtype == dtype
    assert number == BATCHES - 1


def test_a_batch_that_is_kept_stays_as_it_is() -> None:
    kept = [(number, batch) for number, batch in enumerate(loader()) if number % 3 == 0]
    for number, batch in kept:
        check(batch, number)


def test_a_part_of_a_tensor_keeps_its_memory() -> None:
    parts = [batch["wrist"][1, 5:10] for batch in loader()]
    assert [part.tolist() for part in parts] == [[4 * number % 100] * 5 for number in range(BATCHES)]


def test_memory_is_used_again() -> None:
    """Two epochs: a slot for each tensor that is ready, in the making, or looked at; none for each batch."""
    batches = loader()
    for _ in range(2):
        for number, batch in enumerate(batches):
            check(batch, number)
        [slots] = [MAPPED[worker.pid] for worker in batches._iterator._workers]  # type: ignore[union-attr]
        assert len(slots) <= 2 * (batches.prefetch_factor + 3)


def test_the_memory_of_workers_that_ended_is_let_go() -> None:
    for _ in range(3):
        for batch in loader(persistent=False):
            last = batch
        assert len(MAPPED) <= 2
    check(last, BATCHES - 1)


def test_a_batch_that_is_written_to_is_not_anothers() -> None:
    """Training code may change a batch in place."""
    for number, batch in enumerate(itertools.islice(loader(), 20)):
        check(batch, number)
        batch["top"].add_(7)
        batch["index"].add_(7)


def test_small_tensors_travel_as_bytes() -> None:
    sent = Batch(state=torch.arange(6.0).view(2, 3), done=torch.tensor([True, False]), task=["push", "lift"])
    data = bytes(ForkingPickler.dumps(sent))
    assert b"rebuild_storage" not in data and len(data) < 1000
    arrived = ForkingPickler.loads(data)
    assert type(arrived) is Batch and arrived.keys() == sent.keys()
    assert torch.equal(arrived["state"], sent["state"]) and torch.equal(arrived["done"], sent["done"])
    arrived["state"].add_(1)  # it may be written to


def test_what_pytorch_and_accelerate_do_with_a_mapping_works_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)  # without a GPU nothing can be pinned
    sent = Batch(state=torch.ones(2), task=["push"])
    for same in (
        copy.copy(sent),
        copy.deepcopy(sent),
        send_to_device(sent, torch.device("cpu")),
        pin_memory(sent),
    ):
        assert (
            isinstance(same, Batch) and torch.equal(same["state"], sent["state"]) and same["task"] == ["push"]
        )


def test_without_workers_tensors_are_ordinary_memory() -> None:
    [first, *_] = DataLoader(Frames(), batch_size=4)
    check(first, 0)
    assert not first["top"].is_shared()
