"""The plain account in docs/performance.md: bytes and operations are counted first, then set against what was measured."""

from collections.abc import Callable
from typing import Any

from lerobot_theia.cache.plan import SHARDS_PER_CAMERA

Result = dict[str, Any]
TOKENS = 196
FRAME_BYTES = {"tiny": TOKENS * 192 * 2, "base": TOKENS * 768 * 2}
"""float16"""


def encoder_flops(width: int, layers: int = 12) -> float:
    """Of one frame: two per weight and token, two products of attention, the patches."""
    tokens = TOKENS + 1
    weights = layers * (4 * width**2 + 2 * width * 4 * width)
    return 2.0 * (tokens * weights + layers * 2 * tokens**2 * width + TOKENS * 3 * 16**2 * width)


REASONS = {
    "gather": "Rows are copied one by one in one thread, where `index_select` uses all of them.",
    "precompute": "Decoding and the encoder want the same cores here; what is to be expected if their times simply added "
    "up stands in the table (`if their times added up`). With an encoder on a GPU they do not share.",
    "scale": "The manifest has a line per shard and opening looks at each file, which is paid once per process.",
}
"""Why a target is missed, where that is known. By benchmark."""


WAITING = """**What a step waits for on a GPU.** Between a batch of tokens, or of their numbers, and the loss, nothing of ours waits
    for the GPU or copies to or from it: torch's fake tensors show that without one (`tests/policies/test_no_waiting.py`).
    What waits is LeRobot's: ACT takes two parts of its loss to the host for the log, before the backward pass begins, and
    `lerobot-train` the loss and the gradient's norm after the update. Its processor copies each tensor of a batch over by
    itself, from pinned memory. Online, the range of float frames is checked, which waits once per camera."""
"""True of the code, whatever was measured."""


def account(results: dict[str, Result]) -> list[str]:
    """One paragraph per benchmark that has results, each followed by an empty line."""
    lines = []
    for name, write in PARAGRAPHS.items():
        if name in results:
            lines += [" ".join(write(results[name]).split()), ""]
    return [*lines, " ".join(WAITING.split()), ""]


def median(result: Result, arm: str) -> float:
    return result["arms"][arm]["median"]


def outcome(result: Result, what: str) -> float:
    return next(each["value"] for each in result["outcomes"] if each["what"] == what)


def loader(result: Result) -> str:
    sample = 2 * FRAME_BYTES["tiny"]
    rates = {arm: median(result, arm) for arm in ("disk", "memory", "device-indices", "lerobot-video")}
    return f"""**Reading.** A sample of these windows is two frames of tokens, {sample / 1e3:.0f} kB; everything else in it is
        below 1 kB. From disk {rates["disk"]:,.0f} samples/s are {rates["disk"] * sample / 1e9:.1f} GB/s, from memory
        {rates["memory"]:,.0f} are {rates["memory"] * sample / 1e9:.1f} GB/s: the limit is copying bytes. With tokens on
        the policy's device the loader moves only indices and columns, {rates["device-indices"]:,.0f} samples/s, and the
        limit is Python: {64e6 / rates["device-indices"]:,.0f} µs for a batch of 64. LeRobotDataset takes
        {1e3 / rates["lerobot-video"]:.1f} ms per sample, for decoding two frames and reading rows of parquet one by one."""


def gather(result: Result) -> str:
    threads = result["settings"]["threads"][0]
    warm = {size: median(result, f"disk, {size}, {threads} thread(s)") for size in FRAME_BYTES}
    table = {size: median(result, f"index_select, {size}, {threads} thread(s)") for size in FRAME_BYTES}
    cold = {size: median(result, f"disk-cold, {size}") for size in FRAME_BYTES}
    reads = {size: median(result, f"disk-cold reads, {size}") for size in FRAME_BYTES}
    batch = {size: result["settings"]["rows"] * each / 1e6 for size, each in FRAME_BYTES.items()}
    return f"""**Gathering.** A batch of {result["settings"]["rows"]} rows is {batch["tiny"]:.1f} MB with tiny and
        {batch["base"]:.1f} MB with base tokens. With warm pages the gather makes {warm["tiny"]:.1f} and
        {warm["base"]:.1f} GB/s, `index_select` {table["tiny"]:.1f} and {table["base"]:.1f} GB/s; both read and write each
        byte once. The C library takes memory for a batch above 32 MB fresh from the system each time, 4 kB by 4 kB, which is what
        `index_select` waits for; the gather asks for huge pages. The first batches of a cold page cache come at {cold["tiny"]:.2f} and {cold["base"]:.2f} GB/s, and
        {reads["tiny"]:.1f} and {reads["base"]:.1f} bytes are read from the disk for each byte asked for."""


def precompute(result: Result) -> str:
    encode = median(result, "encoder alone, PushT")
    rate = encode * encoder_flops(192) / 1e9
    labels = [name.removeprefix("precompute, ") for name in result["arms"] if name.startswith("precompute, ")]
    parts = [
        f"{label}: {median(result, f'precompute, {label}'):.1f} frames/s of {median(result, f'encoder alone, {label}'):.1f} "
        f"(encoder alone) and {median(result, f'decoding alone, {label}'):,.0f} (decoding alone)"
        for label in labels
    ]
    size = "tiny" if "tiny" in result["settings"]["encoder"] else ""
    counted = (
        f"The tiny encoder needs {encoder_flops(192) / 1e9:.2f} GFLOP per frame; {encode:.1f} frames/s alone are {rate:.0f} "
        f"GFLOP/s."
        if size
        else ""
    )
    return f"""**Precompute.** {counted} {"; ".join(parts)}. On a CPU decoding, resizing and encoding want the same cores,
        so their times add up. Precompute is still no slower than "encoder alone", since that encodes each batch of 64 at once, as
        asked, and precompute 16 at a time, whose activations stay in the caches: a quarter less time. What is written is {FRAME_BYTES["tiny"] / 1e3:.0f} kB per frame, far below a disk's rate."""


def train_act(result: Result) -> str:
    best = result["settings"]["best_num_workers"]
    rates = {arm: median(result, f"{arm}, {workers} workers") for arm, workers in best.items()}
    return f"""**Training ACT.** Raw frames: two ResNet-18 forward and backward passes per sample over 480×640 pixels, and
        2 × 300 tokens in the transformer. Cached: no vision network, and 2 × 196 or 2 × 49 tokens. A step of batch 8 takes
        {1 / rates["act"]:.1f} s raw, {1 / rates["theia_act 14x14"]:.1f} s with 14×14 and {1 / rates["theia_act 7x7"]:.2f} s
        with 7×7 tokens. What is left is ACT's own transformer, its VAE encoder, and AdamW over their weights."""


def train_diffusion(result: Result) -> str:
    text = "**Training Diffusion.** Online, each step encodes 64 × 2 frames"
    for size, width in (("tiny", 192), ("base", 768)):
        cached = [median(result, arm) for arm in result["arms"] if arm.startswith(f"{size}, cached")]
        online = [median(result, arm) for arm in result["arms"] if arm.startswith(f"{size}, online")]
        if cached and online:
            text += f"""; with {size} that is {128 * encoder_flops(width) / 1e12:.2f} TFLOP, and a step takes
                {1 / max(online):.1f} s against {1 / max(cached):.2f} s from the cache"""
    return text + "."


def heads(result: Result) -> str:
    names = list(result["settings"]["grids"])
    parts = ", ".join(f"{name} {median(result, f'{name}, tiny'):.0f}" for name in names)
    ratios = [outcome(result, f"attention, torch's over attention, {size}") for size in FRAME_BYTES]
    return f"""**Token heads.** Milliseconds of a step's {result["settings"]["frames"]} frames, tiny: {parts}. `compression`
        multiplies 44 million times a frame, in its first convolution above all; `spatial_softmax` 1.2 million times. `attention` has one query, so that the query can
        be taken to the tokens in place of the tokens to keys and values: 1.5 million multiplications a frame in place of 35
        million, and the same result. It is {ratios[0]:.1f} times as fast as `nn.MultiheadAttention` with tiny, and
        {ratios[1]:.1f} times with base. {act_heads(result)}"""


def act_heads(result: Result) -> str:
    steps = {name: arm["median"] for name, arm in result["arms"].items() if name.startswith("theia_act, ")}
    if not steps:
        return ""
    parts = "; ".join(f"{name.removeprefix('theia_act, ')}: {ms:,.0f}" for name, ms in steps.items())
    ratio = outcome(result, "theia_act, linear, 14x14 over compression")
    return f"""A step of `theia_act`'s whole network, batch {result["settings"]["act_frames"]}, one camera, in milliseconds: {parts}.
        `compression` leaves 9 of 196 positions for all its layers: its step is {ratio:.1f} times as fast as that of `linear` from as many
        tokens."""


def scale(result: Result) -> str:
    small, large = (f"{frames:,} frames" for frames in result["settings"]["frames"])

    def ms(label: str, size: str) -> float:
        return 1e3 * median(result, f"{label}, {size}")

    shards = {size: f"memory maps of shards, {size}" for size in (small, large)}
    return f"""**Scale.** Opening takes {ms("open", small):.1f} ms at {small} and {ms("open", large):.1f} ms at {large}; it
        reads the manifest, a line per shard, and looks at size and header of each. The first batch takes
        {ms("first batch", small):.1f} and {ms("first batch", large):.1f} ms: each shard that a row lies in is opened, checked
        and mapped once, and after some batches {median(result, shards[small]):.0f} of the small cache's are mapped and
        {median(result, shards[large]):.0f} of the large one's, which has {SHARDS_PER_CAMERA} at most. A later batch takes
        {ms("a later batch", small):.1f} and {ms("a later batch", large):.1f} ms. Descriptors stay at
        {median(result, f"open descriptors, {large}"):.0f}, because a map needs none."""


def int8(result: Result) -> str:
    value = outcome(result, "held-out loss from int8 over from fp16")
    return f"""**int8.** One byte per value and four per token for its scale. The held-out loss of one policy from int8
        tokens is {value:.5f} of that from float16."""


def gpu_encoder(result: Result) -> str:
    product = median(result, "matrix product")
    sizes = [size for size in ("tiny", "small", "base") if f"theia {size}" in result["arms"]]
    parts = [
        f"{size}: {median(result, f'theia {size}'):,.0f} frames/s eager, {median(result, f'theia {size}, compiled'):,.0f} "
        f"compiled, {median(result, f'transformers ViT {size}'):,.0f} transformers' own ViT; the best is "
        f"{outcome(result, f'share of the matrix rate measured here, {size}'):.0%} of the matrix rate"
        for size in sizes
    ]
    return f"""**Encoder.** A large product runs at {product:,.0f} TFLOP/s in bf16 here, which is what there is to reach.
        {"; ".join(parts)}."""


def gpu_latency(result: Result) -> str:
    parts = [f"{name}: {arm['median']:.1f} ms" for name, arm in result["arms"].items()]
    return f"**Latency.** {'; '.join(parts)}. Each call is waited for, as a robot waits for its action."


def gpu_training(result: Result) -> str:
    runs = {name: arm["median"] for name, arm in result["arms"].items() if arm["unit"] == "samples/s"}
    kinds = {
        "raw frames": [name for name in runs if name.startswith("raw")],
        "online": [name for name in runs if name.startswith("online")],
        "cached": [name for name in runs if name.startswith("cached") and not name.endswith("compiled")],
        "compiled": [name for name in runs if name.endswith("compiled")],
    }
    parts = []
    for kind, names in kinds.items():
        best = max(names, key=lambda name: runs[name])
        split = " + ".join(
            f"{median(result, f'{part}: {best}'):.1f} {part}"
            for part in ("waiting", "preprocessing", "update")
        )
        parts.append(f"{kind} {runs[best]:,.0f} samples/s, a step of {split} ms ({best})")
    return f"**Training {result['name'].removeprefix('gpu_')} on a GPU.** {'; '.join(parts)}."


PARAGRAPHS: dict[str, Callable[[Result], str]] = {
    "loader": loader,
    "gather": gather,
    "scale": scale,
    "precompute": precompute,
    "train_act": train_act,
    "train_diffusion": train_diffusion,
    "int8": int8,
    "heads": heads,
    "gpu_encoder": gpu_encoder,
    "gpu_latency": gpu_latency,
    "gpu_act": gpu_training,
    "gpu_diffusion": gpu_training,
}
