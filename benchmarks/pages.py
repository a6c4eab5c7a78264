"""What the generated pages share: the line that says where numbers come from, and how pictures are drawn."""

from collections.abc import Collection, Mapping
from typing import Any


def provenance(results: Collection[Mapping[str, Any]]) -> str:
    """Machine, dates and versions of results of one machine, as a sentence or two."""
    about = next(iter(results))["machine"]
    dates = sorted({result["date"] for result in results})
    found: dict[str, dict[str, None]] = {}  # in order
    for result in results:
        for package, version in result["versions"].items():
            found.setdefault(package, {})[version] = None
    versions = ", ".join(f"{package} {' or '.join(each)}" for package, each in found.items())
    cores = f"{about['cores']} core" + "s" * (about["cores"] != 1)
    return (
        f"{about['cpu']}, {cores}, {about['memory_gb']} GB, {about['gpu'] or 'no GPU'}. "
        f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with {versions}."
    )


def pyplot() -> Any:
    """matplotlib without a screen, whose pictures differ only if the numbers do."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lerobot-theia"
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a tenth of the size
    import matplotlib.pyplot as plt

    return plt
