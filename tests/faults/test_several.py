"""Several at once: the living finish what the killed began, readers see no half, and nobody disturbs another's training.

How processes share the work is tested in tests/cache/test_sharing.py.
"""

import time
from pathlib import Path

import pytest
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from torch.utils.data import DataLoader

from lerobot_theia.cache import CacheDamagedError, CacheMismatchError, FeatureCache
from lerobot_theia.cache.catalog import CacheRequest, find_cache
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.encoder import TheiaEncoder
from tests.datasets import REPO_ID
from tests.faults.children import Child, Tell
from tests.faults.injection import Fault
from tests.faults.trials import in_turns, new_root
from tests.faults.workshop import TOP, WRIST, Job, Made, Whole, made, make_cache, make_job, start, state

pytestmark = pytest.mark.faults


def slowly(tell: Tell, job: Job, root: Path, pause_s: float, changes: dict) -> Made:
    """For children: precompute, resting before each batch."""
    encode = TheiaEncoder.encode_preprocessed

    def rested(self: TheiaEncoder, pixels: Tensor) -> Tensor:
        time.sleep(pause_s)
        return encode(self, pixels)

    TheiaEncoder.encode_preprocessed = rested  # type: ignore[method-assign]
    return Made(precompute(job.settings(root, **changes), on_plan=lambda plan: tell("planned")), [])


def kill_one_of_two(whole: Whole, fault: Fault) -> None:
    """One process is killed at a step; the other, that came with it, ends with the whole cache and nothing besides."""
    with new_root() as root:
        doomed, other = Child(make_cache, whole.job, root, fault), start(whole.job, root)
        ended = doomed.wait()
        assert ended.killed or ended.status == 0, ended  # the other may have left it too little to do
        report = made(other.wait()).report
        assert report.frames_kept + report.frames_shared + report.frames_encoded == whole.frames
        again = made(start(whole.job, root).wait()).report
        assert again.up_to_date, "the cache of the one that lived was not whole"
        whole.check_resumed(root, again, whole.complete(whole.root))


def test_a_process_finishes_what_another_was_killed_at(whole: Whole) -> None:
    some = range(3, len(whole.steps), len(whole.steps) // 6)
    in_turns(lambda fault: kill_one_of_two(whole, fault), [Fault(step, "after", "kill") for step in some])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_process_finishes_what_another_was_killed_at_at_any_step(small: Whole) -> None:
    faults = [Fault(step, when, "kill") for step in range(len(small.steps)) for when in ("before", "after")]
    in_turns(lambda fault: kill_one_of_two(small, fault), faults)


def request(job: Job, root: Path) -> CacheRequest:
    encoder = TheiaEncoder.from_pretrained(job.encoder, translators=False)
    meta = LeRobotDatasetMetadata(REPO_ID, root=job.dataset)
    return CacheRequest(meta=meta, cameras=(TOP, WRIST), encoder=encoder.spec, encoder_name=str(job.encoder))


def test_a_cache_that_is_being_built_cannot_be_opened(whole: Whole, tmp_path: Path) -> None:
    """It is looked at all the time; once it opens, it is whole."""
    asked, path = request(whole.job, tmp_path), whole.at(tmp_path)
    child = Child(slowly, whole.job, tmp_path, 0.05, {})
    assert child.hear() == "planned"
    refused = 0
    while True:
        shards = len(list(path.glob("*/0*.safetensors")))
        try:
            cache = FeatureCache.open(path)
            break
        except CacheDamagedError as error:
            assert "not finished" in str(error)
            refused += 1
        if 0 < shards < 6 and refused % 20 == 1:
            with pytest.raises(CacheMismatchError, match=f"not finished: {path}"):
                find_cache(tmp_path, asked)
        assert child.process.is_alive() or (path / "manifest.json").exists()
    assert refused > 1
    assert len(whole.complete(tmp_path)) == 6 and cache.verify() == []
    assert find_cache(tmp_path, asked).path == path
    made(child.wait())


def batches(job: Job, cache: FeatureCache, epochs: int) -> list[dict[str, Tensor]]:
    """What training sees: shuffled batches of tokens and columns."""
    dataset = LeRobotDataset(REPO_ID, root=job.dataset, delta_timestamps={"action": [0.0, 0.1]})
    served = FeatureDataset(dataset, cache, {TOP: TOP, WRIST: WRIST})
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(served, batch_size=4, shuffle=True, generator=generator)
    return [batch for _ in range(epochs) for batch in loader]


def test_training_is_undisturbed_while_others_precompute_beside_it(
    whole: Whole, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another camera, another pooling and another dataset go to the same root, and one process of them is killed."""
    made(start(whole.job, tmp_path).wait())
    path, other = whole.at(tmp_path), make_job(tmp_path_factory.mktemp("other"), episodes=(4, 6))
    cache, before = FeatureCache.open(path), state(path)
    expected = batches(whole.job, cache, epochs=3)
    asked = request(whole.job, tmp_path)
    builders = [
        Child(slowly, whole.job, tmp_path, 0.02, {"cameras": (TOP,)}),
        Child(slowly, whole.job, tmp_path, 0.02, {"pool": 2}),
        Child(slowly, other, tmp_path, 0.02, {"repo_id": "local/other"}),
        Child(slowly, other, tmp_path, 0.02, {"repo_id": "local/other", "pool": 7}),
    ]
    rounds = 0
    while any(child.process.is_alive() for child in builders) or rounds < 3:
        found = find_cache(tmp_path, asked)
        assert found.path == path
        served = batches(whole.job, found, epochs=3)
        for batch, wanted in zip(served, expected, strict=True):
            assert batch.keys() == wanted.keys()
            assert all(
                torch.equal(batch[key], wanted[key])
                if isinstance(wanted[key], Tensor)
                else batch[key] == wanted[key]
                for key in wanted
            )
        rounds += 1
        builders[-1].kill()
    reports = [made(child.wait()).report for child in builders[:-1]]
    assert reports[0].frames_copied == 16  # tokens of this camera are there already
    assert all(report.frames_encoded > 0 for report in reports[1:])
    assert state(path) == before
