"""Long runs: memory, open files and maps stay where they were after a warm-up. `benchmarks/endurance.py` runs longer.

Memory is what no file backs. Pages of mapped shards come and go as the kernel sees fit, and are not counted.
"""

import gc
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from lerobot.utils.utils import cycle
from torch.utils.data import DataLoader, RandomSampler

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.make import WRITES_WAITING
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.cache.shard import ShardWriter
from lerobot_theia.data.batch import MAPPED
from lerobot_theia.data.feature_dataset import FeatureDataset
from tests.datasets import REPO_ID, make_dataset, open_dataset
from tests.faults.workshop import make_encoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not say"),
]

CAMERA = "observation.images.top"
BATCHES, BATCH_SIZE = 3000, 16
FRAMES = (400, 400, 400)


@dataclass(frozen=True)
class Usage:
    memory_kb: int
    descriptors: int
    maps: int

    @classmethod
    def now(cls) -> "Usage":
        """Of this process and its children."""
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        living = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
        folders = [Path(f"/proc/{process.pid}") for process in living]
        return cls(
            sum(unbacked_kb(folder) for folder in folders),
            sum(len(list((folder / "fd").iterdir())) for folder in folders),
            sum((folder / "maps").read_text().count("\n") for folder in folders),
        )


def unbacked_kb(process: Path) -> int:
    lines = (process / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def check_flat(usages: list[Usage], memory_mb: int) -> None:
    """The least of the last quarter is not above the most of the first, but for a little."""
    quarter = len(usages) // 4
    early, late = usages[:quarter], usages[-quarter:]
    assert min(each.memory_kb for each in late) <= max(each.memory_kb for each in early) + memory_mb * 1024, (
        usages
    )
    assert min(each.descriptors for each in late) <= max(each.descriptors for each in early), usages
    assert min(each.maps for each in late) <= max(each.maps for each in early) + 8, usages


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("long") / "dataset"
    return make_dataset(root, episodes=FRAMES, cameras={CAMERA: (16, 16)}, use_videos=False)


type Precomputed = tuple[FeatureCache, list[Usage], list[int]]


@pytest.fixture(scope="module")
def precomputed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Precomputed:
    """A cache of 1,200 frames in 86 shards; what was used after each shard, and how many writers of shards there were."""
    folder = tmp_path_factory.mktemp("long-cache")
    usages: list[Usage] = []
    writers: list[list[str]] = []

    def note(complete: int, new: int) -> None:
        usages.append(Usage.now())
        # By type: isinstance asks the object, and other tests leave proxies of what is gone.
        living = [each for each in gc.get_objects() if type(each) is ShardWriter]
        writers.append([each.key.fingerprint for each in living])

    report = precompute(
        PrecomputeSettings(
            repo_id=REPO_ID, root=str(dataset), encoder=str(make_encoder(folder / "encoder")), device="cpu",
            cache_root=str(folder), shard_mib=1,
        ),
        progress=note,
    )  # fmt: skip
    cache = FeatureCache.open(report.path)
    return cache, usages, [living.count(cache.manifest.identity.fingerprint) for living in writers]


def test_a_precompute_uses_no_more_at_its_end_than_soon_after_its_start(precomputed: Precomputed) -> None:
    cache, usages, _ = precomputed
    assert len(usages) >= 40
    # 30 MB of tokens lie between the quarters compared.
    assert cache.manifest.num_bytes > 80 * 2**20
    check_flat(usages[len(usages) // 5 :], memory_mb=8)


def test_a_precompute_lets_go_of_shards_that_are_made(precomputed: Precomputed) -> None:
    """A little that is kept of each, in the midst of what is freed, can cost the allocator 0.8 MB a shard."""
    _, _, writers = precomputed
    assert 0 < max(writers) <= 2 * WRITES_WAITING


@pytest.mark.parametrize("workers", [0, 2])
def test_thousands_of_batches_use_no_more_than_the_first_hundreds(
    workers: int, dataset: Path, precomputed: Precomputed
) -> None:
    cache, *_ = precomputed
    served = FeatureDataset(open_dataset(dataset, delta_timestamps={CAMERA: [0.0]}), cache, {CAMERA: CAMERA})
    loader = DataLoader(
        served, batch_size=BATCH_SIZE, sampler=RandomSampler(served), num_workers=workers,
        persistent_workers=workers > 0, multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    usages = []
    for number, batch in enumerate(itertools.islice(cycle(loader), BATCHES)):
        assert batch["index"].shape == (BATCH_SIZE,)
        if number % 100 == 99:
            # Without the workers' slots, open here and there: how many there are is bounded (tests/data_room/test_batch.py),
            # but the last of them, made when a worker is quick between two epochs, may come late.
            usage, slots = Usage.now(), sum(map(len, MAPPED.values()))
            usages.append(replace(usage, descriptors=usage.descriptors - 2 * slots))
    check_flat(usages[3:], memory_mb=8)
