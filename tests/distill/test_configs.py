"""Every file of configs/distill composes, and gives settings that are checked."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from lerobot_theia.distill.settings import DistillSettings, plain_values, settings_from
from lerobot_theia.scripts.configs import config_folder
from lerobot_theia.scripts.distill import settings_of

CONFIGS = Path(config_folder()) / "distill"
OWN = {  # what only a user can say
    "folder": ("corpus.sources.images.path=/data/pictures", "corpus.sources.images.license=mit"),
    "lerobot": ("corpus.sources.dataset.repo_id=me/arm", "corpus.sources.dataset.license=mit"),
    "video": ("corpus.sources.videos.path=/data/videos", "corpus.sources.videos.license=mit"),
    "vision": ("teachers.vision.model=facebook/dinov2-small",),
    "webdataset": ("corpus.sources.shards.train='/data/{00..99}.tar'", "corpus.sources.shards.license=mit"),
}


def composed(*overrides: str, name: str = "distill") -> DistillSettings:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return settings_from(settings_of(compose(name, ["output_dir=outputs/x", *overrides])))


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("corpus", "teachers", "student", "training") for name in files(group)],
)
def test_every_choice_gives_settings(group: str, name: str) -> None:
    own = OWN.get(name, ()) if group in ("corpus", "teachers") else ()
    settings = composed(f"{group}={name}", *own)
    assert settings.corpus.sources and settings.teachers


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_recipe_gives_settings(name: str) -> None:
    assert composed(name=name).teachers


def test_what_the_documentation_says_of_mixing() -> None:
    """Several sources, one of them taken out again, another more often, a teacher added."""
    settings = composed(
        "corpus=[pusht,video]", *OWN["video"], "+corpus.repeat.videos=2", "~corpus.sources.pusht",
        "teachers=[pusht,vision]", *OWN["vision"],
    )  # fmt: skip
    assert list(settings.corpus.sources) == ["videos"] and settings.corpus.repeat == {"videos": 2}
    assert list(settings.teachers) == ["pusht", "vision"]


def test_fine_tuning_is_as_the_paper_has_it() -> None:
    training = composed("training=finetune").training
    assert (training.train_blocks, training.learning_rate, training.epochs) == (3, 1e-5, 50)


def test_plain_values_name_no_folder_of_this_machine() -> None:
    settings = composed("corpus=folder", *OWN["folder"], "student.init=/home/me/student")
    values: dict[str, Any] = {"path": Path("/data/pictures"), "type": "folder", "license": "mit"}
    by_hand = settings_from(
        {
            "output_dir": "/data/run",
            "corpus": {"sources": {"images": values}},
            "teachers": {},
            "training": {"steps": 1},
        }
    )
    for each in (settings, by_hand):
        assert plain_values(each)["corpus"]["sources"]["images"]["path"] == "pictures"
    assert plain_values(settings)["student"]["init"] == "student"
    assert plain_values(by_hand)["output_dir"] == "run"
