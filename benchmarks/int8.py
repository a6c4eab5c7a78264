"""Row 8: what int8 tokens cost: bytes, cosine to fp32 tokens, and the loss of a trained policy on held-out batches.

Tokens are real ones, of PushT frames (and of another LeRobotDataset's with --dataset-root). A small theia_act is trained
from the fp16 cache; then the same policy sees the same held-out batches from the fp16 and from the int8 cache.
"""

from pathlib import Path

import torch
from common import Arm, Outcome, Result, options, save
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from synthetic import CAMERA, PUSHT, cache_of_dataset, pusht_dataset
from torch import Tensor
from torch.utils.data import DataLoader

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.storage import DTYPES, bytes_per_frame, decode_tokens, encode_tokens
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.token_statistics import statistics_of_cache
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig
from lerobot_theia.policies.theia_act.modeling_theia_act import TheiaACTPolicy

BATCH_SIZE = 32


def main() -> None:
    chosen = options(
        __doc__,
        ("--encoder", {"default": "random-tiny"}),
        ("--dataset-root", {"type": Path, "help": "a LeRobotDataset v3 whose frames are encoded, too"}),
    )
    quick = chosen.quick
    episodes, held_out = (2, 1) if quick else (6, 1)
    encoder = TheiaEncoder.from_pretrained(chosen.encoder, translators=False)
    root = pusht_dataset(chosen.work, episodes)
    tokens = {"PushT": encode(encoder, PUSHT, root, every=4 if quick else 1)}
    if chosen.dataset_root:
        every = 200 if quick else 10
        tokens["other dataset"] = encode(encoder, "local/other", chosen.dataset_root, every=every)
    outcomes = [bytes_outcome(encoder)]
    arms = {}
    for name, values in tokens.items():
        for dtype in ("float16", "int8"):
            cosines = cosine(values, dtype)
            arms[f"cosine of {dtype}, {name}"] = Arm(what="mean, smallest cosine to fp32 tokens", unit="",
                                                     values=[float(cosines.mean()), float(cosines.min())])  # fmt: skip
        outcomes.append(
            Outcome(what=f"mean cosine of int8 tokens to fp32 tokens, {name}", value=float(cosines.mean()),
                    at_least=0.999, row=8)
        )  # fmt: skip

    step = 4 if quick else 1
    caches = {}
    for dtype in ("float16", "int8"):
        folder = chosen.work / "caches" / f"int8-{encoder.spec.name}-{dtype}-{step}"
        caches[dtype] = cache_of_dataset(
            root, PUSHT, folder, encoder=chosen.encoder, dtype=dtype,
            tokens=lambda start, stop: tokens["PushT"][torch.arange(start, stop) // step],
        )  # fmt: skip
    losses = losses_of_trained(root, caches, held_out, steps=2 if quick else 150)
    for dtype, each in losses.items():
        arms[f"held-out loss, {dtype}"] = Arm(
            what="L1 loss, normalised actions, per batch", unit="", values=each
        )
    means = {dtype: sum(each) / len(each) for dtype, each in losses.items()}
    outcomes += [
        Outcome(what="held-out loss from int8 over from fp16", value=means["int8"] / means["float16"],
                at_least=0.99, at_most=1.01, row=8),
    ]  # fmt: skip
    save(
        Result(
            name="int8",
            measured="int8 tokens: bytes over fp32, cosine to fp32, loss of a trained policy against its fp16 cache",
            settings={
                "encoder": chosen.encoder, "frames": {name: len(each) for name, each in tokens.items()},
                "policy": "theia_act, dim_model 128, 2 layers, chunk 16, no VAE", "steps": 2 if quick else 150,
                "batch_size": BATCH_SIZE, "held_out_episodes": held_out, "mean_loss": means,
            },
            arms=arms,
            outcomes=outcomes,
            notes=["the encoder is untrained; a trained one may have larger outliers"]
            if not encoder.spec.trained else [],
            quick=quick,
        ),
        chosen.out,
    )  # fmt: skip


@torch.no_grad()
def encode(encoder: TheiaEncoder, repo_id: str, root: Path, *, every: int) -> Tensor:
    """fp32 tokens (n, N, D) of every so many frames of the first camera."""
    dataset = LeRobotDataset(repo_id, root=root, return_uint8=True)
    source = CameraFrames(dataset, dataset.meta.camera_keys[0])
    frames = list(range(0, dataset.meta.total_frames, every))
    parts = []
    for start in range(0, len(frames), BATCH_SIZE):
        batch = frames[start : start + BATCH_SIZE]
        if every == 1:
            images = source.read(batch[0], batch[-1] + 1)
        else:
            images = torch.cat([source.read(frame, frame + 1) for frame in batch])
        parts.append(encoder(images).float())
    return torch.cat(parts)


def cosine(tokens: Tensor, dtype: str) -> Tensor:
    """Of each token (N tokens of n frames) to itself as stored."""
    parts = []
    for part in tokens.split(64):
        stored = encode_tokens(part, dtype)
        back = decode_tokens(stored.tokens, stored.scale)
        parts.append(torch.nn.functional.cosine_similarity(part.double(), back.double(), dim=-1).flatten())
    return torch.cat(parts)


def bytes_outcome(encoder: TheiaEncoder) -> Outcome:
    spec = encoder.spec
    size = {dtype: bytes_per_frame(spec.num_patches, spec.hidden_size, dtype) for dtype in DTYPES}
    return Outcome(
        what="bytes of int8 tokens over fp32", value=size["int8"] / size["float32"], at_most=0.27, row=8
    )


def losses_of_trained(
    root: Path, caches: dict[str, FeatureCache], held_out: int, steps: int
) -> dict[str, list[float]]:
    """Train on fp16 tokens, then evaluate on held-out batches of each cache."""
    torch.manual_seed(0)
    meta = LeRobotDatasetMetadata(PUSHT, root=root)
    config = TheiaACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        encoder=caches["float16"].manifest.encoder_name,
        chunk_size=16, n_action_steps=8, dim_model=128, n_heads=4, dim_feedforward=512, n_encoder_layers=2,
        use_vae=False, dropout=0.0, device="cpu", push_to_hub=False,
    )  # fmt: skip
    stats = meta.stats | statistics_of_cache(caches["float16"], {CAMERA: CAMERA})
    policy = TheiaACTPolicy(config, dataset_stats=stats)
    preprocess, _ = make_pre_post_processors(config, dataset_stats=stats)
    deltas = resolve_delta_timestamps(config, meta)

    def loader(dtype: str, episodes: list[int], shuffle: bool) -> DataLoader:
        dataset = LeRobotDataset(PUSHT, root=root, episodes=episodes, delta_timestamps=deltas)
        served = FeatureDataset(dataset, caches[dtype], {CAMERA: CAMERA})
        return DataLoader(served, BATCH_SIZE, shuffle=shuffle, drop_last=True)

    training = loader("float16", list(range(meta.total_episodes - held_out)), shuffle=True)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-4)
    done = 0
    policy.train()
    while done < steps:
        for batch in training:
            loss, _ = policy.forward(preprocess(batch))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
            optimizer.step()
            done += 1
            if done == steps:
                break
    policy.eval()
    last = list(range(meta.total_episodes - held_out, meta.total_episodes))
    with torch.no_grad():
        return {
            dtype: [
                policy.forward(preprocess(batch))[0].item() for batch in loader(dtype, last, shuffle=False)
            ]
            for dtype in caches
        }


if __name__ == "__main__":
    main()
