"""Losses, schedules and licences: the arithmetic, written out."""

import math

import pytest
import torch

from lerobot_theia.distill.augment import recolour
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.licenses import (
    ALLOWED,
    FORBIDDEN,
    UNCLEAR,
    commercial_use,
    stated_or_stricter,
    strictest,
    student_license,
)  # fmt: skip
from lerobot_theia.distill.loss import Standard, batch_loss, teacher_loss
from lerobot_theia.distill.schedule import LearningRate, Resolution, Stage


def test_loss_of_a_teacher() -> None:
    predicted, target = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    loss = teacher_loss(predicted, target)
    for i in range(2):
        a, b = predicted[i].flatten(), target[i].flatten()
        assert loss.cosine[i].item() == pytest.approx(1 - (a @ b / (a.norm() * b.norm())).item(), abs=1e-6)
        error = (a - b).abs()
        smooth = torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()
        assert loss.smooth_l1[i].item() == pytest.approx(smooth.item(), abs=1e-6)
    assert torch.allclose(loss.total, 0.9 * loss.cosine + 0.1 * loss.smooth_l1)


def test_loss_of_a_batch_is_the_mean_over_teachers() -> None:
    losses = {name: teacher_loss(torch.randn(4, 2, 3), torch.randn(4, 2, 3)) for name in "ab"}
    expected = (losses["a"].total.mean() + losses["b"].total.mean()) / 2
    assert batch_loss(losses, {"a": 1.0, "b": 1.0}, 4).item() == pytest.approx(expected.item(), abs=1e-6)
    weighted = (3 * losses["a"].total.mean() + losses["b"].total.mean()) / 4
    assert batch_loss(losses, {"a": 3.0, "b": 1.0}, 4).item() == pytest.approx(weighted.item(), abs=1e-6)


def test_images_count_alike_whoever_teaches_them() -> None:
    rows = torch.tensor([1, 2])
    losses = {
        "all": teacher_loss(torch.randn(3, 2, 3), torch.randn(3, 2, 3)),
        "some": teacher_loss(torch.randn(2, 2, 3), torch.randn(2, 2, 3), rows),
    }
    of_all, of_some = losses["all"].total, losses["some"].total
    expected = (of_all[0] + (of_all[1] + of_some[0]) / 2 + (of_all[2] + of_some[1]) / 2) / 3
    assert batch_loss(losses, {}, 3).item() == pytest.approx(expected.item(), abs=1e-6)


def test_standardising_and_back() -> None:
    features = torch.randn(2, 3, 4, 4) * 5 + 2
    standard = Standard(features.mean((0, 2, 3)), features.std((0, 2, 3)))
    flat = standard.standardise(features)
    assert flat.shape == (2, 16, 3)
    assert flat.mean().abs() < 1e-5 and (flat.std() - 1).abs() < 0.05
    assert torch.allclose(standard.restore(flat), features.flatten(2).transpose(1, 2), atol=1e-5)
    constant = Standard(torch.ones(1), torch.zeros(1))
    assert torch.equal(constant.standardise(torch.ones(1, 1, 2, 2)), torch.zeros(1, 4, 1))


def test_learning_rate_warms_up_and_stays() -> None:
    rate = LearningRate(peak=1.0, steps=100)
    assert rate.at(0) == pytest.approx(0.01)
    assert rate.at(5) == pytest.approx(0.505)
    assert [rate.at(step) for step in (10, 50, 99)] == [1.0, 1.0, 1.0]


def test_learning_rate_falls_along_a_cosine() -> None:
    rate = LearningRate(peak=2.0, steps=110, schedule="cosine", warmup=10 / 110)
    assert rate.at(10) == pytest.approx(2.0)
    assert rate.at(60) == pytest.approx(1.0)
    assert rate.at(85) == pytest.approx(1 + math.cos(math.pi * 0.75))
    with pytest.raises(DistillError, match="schedule is 'linear', must be one of constant, cosine"):
        LearningRate(peak=1.0, steps=10, schedule="linear")


def test_resolution_grows() -> None:
    resolution = Resolution((Stage(size=112, share=3), Stage(size=224, share=1)), steps=8)
    assert [resolution.at(step) for step in range(8)] == [112] * 6 + [224] * 2
    with pytest.raises(DistillError, match="100 is not a multiple of 16"):
        Stage(size=100, share=1)


def test_recolouring_is_a_function_of_seed_and_step() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(recolour(images, 0.0, 0, 0), images)
    once, again = recolour(images, 0.3, 1, 2), recolour(images, 0.3, 1, 2)
    assert torch.equal(once, again) and not torch.equal(once, images)
    assert not torch.equal(recolour(images, 0.3, 1, 3), once)


@pytest.mark.parametrize(
    ("license", "verdict"),
    [
        ("apache-2.0", ALLOWED),
        ("Apache-2.0 (drawn by this project)", ALLOWED),
        ("MIT", ALLOWED),
        ("Apache License, Version 2.0", ALLOWED),
        ("CC BY 4.0", ALLOWED),
        ("cc-by-nc-4.0", FORBIDDEN),
        ("CC BY-NC-SA", FORBIDDEN),
        ("The AI Institute License, non-commercial research only", FORBIDDEN),
        ("MIT (no commercial use)", FORBIDDEN),
        ("apache-2.0 (weights for research use only)", FORBIDDEN),
        ("not for commercial use", FORBIDDEN),
        ("for research only", FORBIDDEN),
        ("MIT (only some of it)", UNCLEAR),
        ("MIT (non-profit)", UNCLEAR),
        ("MIT (Llama 2 community)", UNCLEAR),
        ("apache-2.0 (weights are gated)", UNCLEAR),
        ("Apache-2.0 (drawn by this project) (weights: other)", UNCLEAR),
        ("Apache-2.0 (rendered by this project with Meta-World, MIT)", ALLOWED),
        ("Apache-2.0 (DINOv2, by Meta)", ALLOWED),
        ("cc-by-sa-4.0", UNCLEAR),  # shared alike, it would not be Apache-2.0
        ("apache-2.0 (code); weights: Llama 2 Community License", UNCLEAR),
        ("unknown", UNCLEAR),
        ("MIT, but not for cars", UNCLEAR),
        ("other", UNCLEAR),
    ],
)
def test_what_licences_allow(license: str, verdict: str) -> None:
    assert commercial_use(license) == verdict


def test_a_model_card_is_heeded_where_it_is_stricter_than_what_was_stated() -> None:
    assert stated_or_stricter("apache-2.0", "mit") == "apache-2.0"
    assert stated_or_stricter("", "mit") == "mit" and stated_or_stricter("mit", "") == "mit"
    assert stated_or_stricter("cc-by-nc-4.0", "mit") == "cc-by-nc-4.0"
    for card, verdict in {"cc-by-nc-4.0": FORBIDDEN, "other": UNCLEAR}.items():
        found = stated_or_stricter("apache-2.0", card)
        assert card in found and "apache-2.0" in found and commercial_use(found) == verdict


def test_of_several_sessions_the_strictest_licence_counts() -> None:
    statements = [
        {"source a": "mit", "teacher b": "cc-by-nc-4.0"},
        {"source a": "unknown", "teacher b": "mit"},
    ]
    for order in (statements, statements[::-1]):
        assert strictest(order) == {"source a": "unknown", "teacher b": "cc-by-nc-4.0"}


def test_a_student_is_as_free_as_the_least_free_of_its_parts() -> None:
    assert student_license({"source a": "mit", "teacher b": "apache-2.0"}) == ("Apache-2.0", ALLOWED)
    words, verdict = student_license({"source a": "cc-by-nc-4.0", "teacher b": "unknown"})
    assert verdict == FORBIDDEN and words.startswith("non-commercial use only, because of source a (cc-by-nc")
    assert commercial_use(words) == FORBIDDEN, "so is a student of that student"
    words, verdict = student_license({"source a": "mit", "teacher b": "unknown"})
    assert verdict == UNCLEAR and commercial_use(words) == UNCLEAR
