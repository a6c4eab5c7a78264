"""What an encoder sees: poses of things, read off its frozen features by ridge regression, on unseen states.

Features are those of the policies' default token head without what it learns: tokens standardised as in a policy, then a
spatial softmax of each channel, whose expected position (x, y) in the picture is the channel's two features. Beside them
stand the pixels themselves, averaged down to 14x14.

python benchmarks/probe.py --encoders theia-tiny-sim,outputs/distill/my_encoder
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from common import Arm, Result, options, save
from lerobot.policies.diffusion.modeling_diffusion import SpatialSoftmax
from PIL import Image, ImageDraw
from ridge import r_squared, regress
from safetensors.torch import load_file, save_file
from states import VERSION, Suite, aloha_scene, metaworld_task, pusht
from torch import Tensor

from lerobot_theia.data.keys import tokens_key
from lerobot_theia.data.token_statistics import SAMPLED_FRAMES
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.sources.aloha import SCENES
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.pictures import principal_colours
from lerobot_theia.policies.common.features import FrozenFeatures

CAMERA = "observation.image"
BATCH_SIZE = 32
PIXELS = "pixels, 14x14"
SUITES = ("pusht", "pusht-goals", "metaworld", "aloha")
PICTURED = 3
"""Unseen frames of each suite in the picture."""
TILE = 112
CAPTION = 14


def main() -> None:
    chosen = options(
        __doc__,
        ("--encoders", {"default": "theia-tiny-sim,random-tiny", "help": "short names, Hub ids or folders, with commas between"}),
        ("--suites", {"help": f"of {','.join(SUITES)} (all; in quick mode pusht)"}),
        ("--tasks", {"default": "assembly,drawer-open", "help": "Meta-World's (%(default)s)"}),
        ("--frames", {"type": int, "help": "to fit in each suite, and a quarter as many unseen (2000; with MuJoCo 800)"}),
        ("--picture", {"type": Path, "help": "where tokens are drawn (probe.png in --work)"}),
    )  # fmt: skip
    wanted = listed(chosen.suites) if chosen.suites else list(SUITES[:1] if chosen.quick else SUITES)
    if unknown := sorted(set(wanted) - set(SUITES)):
        sys.exit(f"--suites={','.join(unknown)} is not known; choose from {','.join(SUITES)}")
    frames = chosen.frames or (40 if chosen.quick else None)
    if frames is not None and frames < 20:
        sys.exit(f"--frames={frames} are too few to fit anything; at least 20")
    encoders = load(listed(chosen.encoders))

    arms: dict[str, Arm] = {}
    tiles: dict[str, list[Image.Image]] = {name: [] for name in ("frames", *encoders)}
    settings: dict[str, object] = {
        "encoders": {name: encoder.spec.describe() for name, encoder in encoders.items()},
        "features": "spatial softmax of standardised tokens, 2 per channel; pixels: 3 x 14 x 14",
    }
    notes: list[str] = []
    for suite in make_suites(wanted, listed(chosen.tasks), frames, chosen.work / "probe", notes):
        n, m = suite.num_fitting, len(suite.images) - suite.num_fitting
        settings[suite.name] = f"{suite.about}; {n} frames to fit, {m} unseen"
        notes += [f"{suite.name}: {each} hardly changes and was left out" for each in suite.constant]
        arms |= judged(suite, PIXELS, averaged_pixels(suite.images))
        shown = suite.images[n :: m // PICTURED][:PICTURED]
        tiles["frames"] += [tile(image.permute(1, 2, 0), Image.Resampling.BILINEAR) for image in shown]
        for name, encoder in encoders.items():
            arms |= judged(suite, name, keypoints(encoder, suite.images, n, chosen.work / "probe"))
            colours = principal_colours(tokens_of(encoder, shown))
            tiles[name] += [tile(each, Image.Resampling.NEAREST) for each in colours]
            print(f"{suite.name}, {name}: done", file=sys.stderr, flush=True)
    if not arms:
        sys.exit(f"nothing can be probed here: {'; '.join(notes)}")
    picture = chosen.picture or chosen.work / "probe.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet(tiles).save(picture, optimize=True)
    save(
        Result(
            name="probe",
            measured="poses read off frozen features by ridge regression: share of variance explained on unseen states",
            settings=settings, arms=arms, outcomes=[], notes=notes, quick=chosen.quick,
        ),
        chosen.out,
    )  # fmt: skip
    print(picture)


def listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def load(names: Iterable[str]) -> dict[str, TheiaEncoder]:
    encoders: dict[str, TheiaEncoder] = {}
    for name in names:
        encoder = TheiaEncoder.from_pretrained(name, translators=False)
        if encoder.spec.name in encoders:
            sys.exit(
                f"--encoders names two that are called {encoder.spec.name}; copy one to a folder of another name"
            )
        encoders[encoder.spec.name] = encoder
    return encoders


def make_suites(
    wanted: Iterable[str], tasks: Sequence[str], frames: int | None, folder: Path, notes: list[str]
) -> Iterator[Suite]:
    """One after the other, since frames are large, and kept in `folder`; those whose simulator is missing are noted."""
    makers: list[tuple[str, Callable[[], Suite]]] = []
    for name in wanted:
        n = frames or (2000 if name.startswith("pusht") else 800)
        if name == "metaworld":
            makers += [(f"{name} {task}", partial(metaworld_task, task, n, n // 4)) for task in tasks]
        elif name == "aloha":
            makers += [(f"{name} {scene}", partial(aloha_scene, scene, n, n // 4)) for scene in SCENES]
        else:
            makers += [(name, partial(pusht, name, n, n // 4, random_goals=name == "pusht-goals"))]
    for name, make in makers:
        path = folder / f"{name.replace(' ', '-')}-{frames or 'full'}-v{VERSION}.safetensors"
        if not path.exists():
            try:
                make().save(path)
            except DistillError as error:
                notes.append(f"{name} was left out: {error}")
                continue
        yield Suite.load(path)


def judged(suite: Suite, label: str, features: Tensor) -> dict[str, Arm]:
    """An arm for each quantity, from features (n + m, F)."""
    n = suite.num_fitting
    known = {name: values[:n] for name, values in suite.quantities.items()}
    predictions, strengths = regress(features[:n], known, features[n:])
    return {
        f"{suite.name}: {name}, {label}": Arm(
            what=f"R² on unseen states; {features.shape[1]} features, penalty {strengths[name]:g}",
            unit="R²",
            values=[r_squared(suite.quantities[name][n:], predicted)],
        )
        for name, predicted in predictions.items()
    }


def averaged_pixels(images: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, 3 * 14 * 14)"""
    parts = [
        torch.nn.functional.interpolate(part.float(), (14, 14), mode="area") for part in images.split(64)
    ]
    return torch.cat(parts).flatten(1) / 255


def keypoints(encoder: TheiaEncoder, images: Tensor, num_fitting: int, folder: Path) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, 2 D), kept in `folder` for the next run, which may be of more encoders."""
    pictured = hashlib.sha256(images.contiguous().numpy()).hexdigest()[:12]
    path = (
        folder
        / f"{encoder.spec.name}-{encoder.spec.weights_sha256[:12]}-{pictured}-{num_fitting}.safetensors"
    )
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        save_file({"keypoints": pooled(encoder, images, num_fitting)}, unfinished)
        unfinished.replace(path)
    return load_file(path)["keypoints"]


@torch.no_grad()
def pooled(encoder: TheiaEncoder, images: Tensor, num_fitting: int) -> Tensor:
    """Standardised by the first frames to fit, as many as online training would take."""
    features = FrozenFeatures(encoder, [CAMERA], pool=1)
    pool = SpatialSoftmax(features.map_shape)
    first = min(num_fitting, SAMPLED_FRAMES)
    sample = tokens_of(encoder, images[:first])
    statistics = {"mean": sample.mean((0, 1)), "std": sample.flatten(0, 1).std(0, correction=0)}
    features.set_statistics({tokens_key(CAMERA): {name: each.numpy() for name, each in statistics.items()}})
    others = (tokens_of(encoder, part) for part in images[first:].split(BATCH_SIZE))
    tokens = itertools.chain(sample.split(BATCH_SIZE), others)
    return torch.cat([pool(features.to_map(CAMERA, part)).flatten(1) for part in tokens])


@torch.no_grad()
def tokens_of(encoder: TheiaEncoder, images: Tensor) -> Tensor:
    return torch.cat([encoder(part).float() for part in images.split(BATCH_SIZE)])


def tile(pixels: Tensor, method: Image.Resampling) -> Image.Image:
    return Image.fromarray(pixels.contiguous().numpy()).resize((TILE, TILE), method)


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """A row for the frames and for each encoder, with its name above."""
    width = TILE * max(len(tiles) for tiles in rows.values())
    picture = Image.new("RGB", (width, (TILE + CAPTION) * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (name, tiles) in enumerate(rows.items()):
        top = row * (TILE + CAPTION)
        draw.text((2, top + 1), name, fill="black")
        for column, each in enumerate(tiles):
            picture.paste(each, (column * TILE, top + CAPTION))
    return picture


if __name__ == "__main__":
    main()
