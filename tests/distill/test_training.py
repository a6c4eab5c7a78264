"""A whole distillation, in seconds: trained, resumed exactly, written down, loaded; and stopped with a remedy."""

import dataclasses
import errno
import json
import math
import os
import sys
from collections.abc import Buffer, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from PIL import Image
from safetensors.torch import load_file

from lerobot_theia.cache import files
from lerobot_theia.distill import training
from lerobot_theia.distill.checkpoint import whole_checkpoints
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.layout import read_statistics
from lerobot_theia.distill.place import alone_in
from lerobot_theia.distill.student import Beginning, StudentSettings, make_student
from lerobot_theia.distill.training import Training, make_accelerator
from lerobot_theia.distill.validate import Score
from lerobot_theia.encoder import TheiaEncoder, weights_sha256
from tests.distill.conftest import Heard, Run, Values, no_right_to_read
from tests.distill.tiny_teachers import write_teacher

pytest.importorskip("gym_pusht")

TEACHER = "simulator/pusht"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())


# --- the result


def test_the_result_is_an_encoder(run: Run) -> None:
    result = run()
    encoder = TheiaEncoder.from_pretrained(result)
    assert encoder.teachers == (TEACHER,)
    assert (encoder.spec.hidden_size, encoder.spec.num_layers, encoder.spec.license) == (64, 2, "Apache-2.0")
    images = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    assert encoder(images).shape == (2, 196, 64)
    assert encoder.translate(images)[TEACHER].shape == (2, 256, 6)
    config = json.loads((result / "config.json").read_text())
    assert "auto_map" not in config, "no remote code"
    assert config["target_feature_sizes"] == {TEACHER: [6, 16, 16]}


def test_a_checkpoint_is_an_encoder_too(run: Run) -> None:
    result = run()
    newest = whole_checkpoints(result.parent)[-1]
    assert newest.name == "00000004"
    assert same(newest, result)
    assert TheiaEncoder.from_pretrained(newest).teachers == (TEACHER,)


def test_what_ships_is_the_backbone_in_half_precision(run: Run) -> None:
    result = run({"export.shipped": True})
    shipped = result.parent / "shipped"
    tensors = weights(shipped)
    assert all(t.dtype == torch.float16 for t in tensors.values())
    assert all(name.startswith("backbone.") for name in tensors)
    encoder = TheiaEncoder.from_pretrained(shipped)
    assert encoder.teachers == ()
    assert provenance(shipped)["weights_sha256"] == weights_sha256(encoder)
    assert provenance(result)["weights_sha256"] == weights_sha256(TheiaEncoder.from_pretrained(result))


def test_provenance_says_what_the_student_was_made_from(run: Run) -> None:
    found = provenance(run())
    assert (found["license"], found["commercial_use"]) == ("Apache-2.0", "allowed")
    (source,) = found["corpus"]["sources"]
    assert source["splits"] == {"train": 48, "validation": 12}
    assert len(source["content_sha256"]) == 64 and source["made_with"]["gym-pusht"] != "not installed"
    assert "100000 and up" in found["corpus"]["evaluation_seeds"]
    (teacher,) = found["teachers"]
    assert (teacher["name"], teacher["feature_size"], teacher["sources"]) == (TEACHER, [6, 16, 16], ["pusht"])
    assert found["settings"]["training"]["learning_rate"] == 1e-3
    assert found["settings"]["training"]["betas"] == [0.9, 0.999], "defaults are settings too"
    assert found["training"]["steps"] == 4 and found["training"]["images"] == 16
    assert found["validation"]["first"]["loss"] > found["validation"]["last"]["loss"]
    assert found["code"]["lerobot_policy_theia"] and found["environment"]["torch"]
    assert "/" not in found["settings"]["output_dir"], "no paths of this machine"


def test_progress_losses_and_pictures(run: Run) -> None:
    heard = Heard()
    result = run(watcher=heard)
    validated = [line for line in heard.lines if "validation" in line]
    assert [line["step"] for line in validated] == [0, 2, 4]
    assert set(validated[-1]["validation"]["teachers"][TEACHER]) == {"cosine", "smooth_l1", "images"}
    steps = [line for line in heard.lines if "images_per_s" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    log = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [line["step"] for line in heard.lines]
    assert len(list((result.parent / "pictures").glob("*.png"))) == 3


def test_statistics_take_predictions_back(run: Run) -> None:
    standards = read_statistics(run())
    assert standards[TEACHER].mean.shape == standards[TEACHER].std.shape == (6,)
    assert (standards[TEACHER].std > 0).all()


# --- before work is lost


def test_a_missing_simulator_is_found_before_another_one_is_packed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    both = {"until": "corpus", "cache_root": str(tmp_path), "corpus.sources.aloha": {"type": "aloha"}}
    with pytest.raises(
        DistillError, match=r"mujoco.*pip install 'lerobot_policy_theia\[metaworld\]' \(or \[aloha\]\)"
    ):
        run(both)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- resume


class PowerCutError(Exception):
    pass


class StopAt(Heard):
    """Ends a run as a power cut would, after a number of steps."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def log(self, line: Mapping[str, Any]) -> None:
        super().log(line)
        if line["step"] == self.step and "images_per_s" in line:
            raise PowerCutError


def test_a_resumed_run_is_the_same_run(run: Run, values: Values, tmp_path: Path) -> None:
    changes = {"training.steps": 7, "training.schedule": "cosine", "training.recolour": 0.2}
    stages = {"training.stages": [{"size": 32, "share": 0.5}, {"size": 48, "share": 0.5}]}
    whole = run({**changes, **stages, "output_dir": str(tmp_path / "whole")})
    with pytest.raises(PowerCutError):
        run({**changes, **stages}, watcher=StopAt(5))
    resumed = run({**changes, **stages, "resume": True})
    assert same(whole, resumed)
    logs = []
    for result in (whole, resumed):
        lines = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k != "images_per_s"} for line in lines])
    assert logs[0] == logs[1]
    assert provenance(resumed)["training"]["sessions"] == 2
    assert provenance(resumed)["validation"] == provenance(whole)["validation"]


def test_a_run_that_stands_is_not_overwritten(run: Run) -> None:
    run()
    with pytest.raises(DistillError, match="already holds a run: go on with it with resume=true"):
        run()


def test_resuming_a_finished_run_changes_nothing(run: Run) -> None:
    result = run()
    files = (result / "model.safetensors", result / "config.json", result.parent / "metrics.jsonl")
    before, told = [file.read_bytes() for file in files], provenance(result)
    run({"resume": True, "training.learning_rate": 7.0, "training.bf16": True, "training.recolour": 0.5})
    assert [file.read_bytes() for file in files] == before
    assert provenance(result) | {"created": told["created"]} == told, (
        "of settings that no step was taken with"
    )


def test_each_session_is_written_down_with_its_settings(run: Run) -> None:
    run({"training.learning_rate": 1e-3})
    result = run({"resume": True, "training.steps": 5, "training.learning_rate": 1e-6})
    told = provenance(result)
    (earlier,) = told["training"]["earlier_sessions"]
    assert (earlier["from_step"], earlier["settings"]["training"]["learning_rate"]) == (0, 1e-3)
    assert told["settings"]["training"]["learning_rate"] == 1e-6
    assert earlier["settings"]["training"]["steps"] == 4 and told["training"]["steps"] == 5


def test_a_run_that_has_begun_keeps_to_its_images(run: Run, picture_folder: Path) -> None:
    vit = write_teacher(picture_folder.parent / "tiny-vit", "vit")
    pictures = {"type": "folder", "path": str(picture_folder), "license": "mit"}
    changes: Values = {
        "corpus.sources": {"pictures": pictures},
        "corpus.allow_skipped": 0.05,
        "teachers": {"vit": {"type": "vision", "model": str(vit), "features": "on_the_fly"}},
        "training.pictures": 0,
    }
    with no_right_to_read("03.png"):
        run(changes)
    told = provenance(run({**changes, "resume": True, "training.steps": 5}))
    assert [each["id"] for each in told["corpus"]["skipped"]] == ["pictures/a/03.png"]


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("stated", [("cc-by-nc-4.0", "cc0-1.0"), ("cc0-1.0", "cc-by-nc-4.0")])
def test_the_strictest_licence_that_was_ever_stated_counts(
    steps: int, stated: tuple[str, str], run: Run, picture_folder: Path
) -> None:
    def changes(license: str, **more: Any) -> Values:
        pictures = {"type": "folder", "path": str(picture_folder), "license": license}
        return {
            "corpus.sources.pictures": pictures,
            "teachers.vit": {"type": "vision", "model": str(vit), "features": "on_the_fly"},
            **more,
        }

    vit = write_teacher(picture_folder.parent / "tiny-vit", "vit")
    run(changes(stated[0]))
    result = run(changes(stated[1], resume=True, **{"training.steps": steps}))
    told = provenance(result)
    assert told["commercial_use"] == "forbidden"
    assert (
        "source pictures (cc-by-nc-4.0)"
        in told["license"]
        == json.loads((result / "config.json").read_text())["license"]
    )
    assert told["corpus"]["sources"][1]["license"] == "cc-by-nc-4.0"
    assert (steps == 4) == (told["training"]["earlier_sessions"] == [])


def test_resume_begins_where_nothing_stands(run: Run) -> None:
    heard = Heard()
    run({"resume": True}, watcher=heard)
    assert any("beginning at step 0" in text for text in heard.said)


def test_a_damaged_checkpoint_is_passed_over(run: Run, tmp_path: Path) -> None:
    whole = run({"training.steps": 6, "output_dir": str(tmp_path / "whole")})
    result = run()
    newest = whole_checkpoints(result.parent)[-1]
    (newest / "optimizer.safetensors").write_bytes(b"cut off")
    assert same(run({"training.steps": 6, "resume": True}), whole)


def test_only_damaged_checkpoints_are_an_error(run: Run) -> None:
    result = run()
    for folder in whole_checkpoints(result.parent):
        (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(DistillError, match=r"no checkpoint in .* is whole"):
        run({"resume": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teachers.more": {"type": "pusht", "name": "simulator/more", "resolution": 16}},
            r"made with the teachers \['simulator/pusht'\], configured are \['simulator/more', 'simulator/pusht'\]",
        ),
        ({"teachers.pusht.resolution": 32}, r"in another form: simulator/pusht"),
        ({"student.num_layers": 3}, "made with student="),
        ({"corpus.sources.pusht.images": 61}, r"another corpus: corpus.sources.pusht.images=61 \(was 60\)"),
        (
            {"corpus.sources.pusht.validation": 0.4},
            r"another corpus: corpus.sources.pusht.validation=0.4 \(was 0.2\)",
        ),
        ({"corpus.repeat": {"pusht": 2}}, r"another corpus: corpus.repeat.pusht=2 \(was not given\)"),
        ({"corpus.image_size": 64}, "made with image_size=224, configured is 64"),
        ({"training.steps": 3}, r"00000004 has 4 steps; wanted are 3: raise training.steps"),
        ({"training.seed": 5}, "made with seed=0, configured is 5"),
        ({"teachers.pusht.weight": 5.0}, r"made with teacher_weights=.*1.0.*, configured is .*5.0"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(run: Run, change: Values, message: str) -> None:
    before = weights(run())
    with pytest.raises(DistillError, match=message):
        run({**change, "resume": True})
    after = weights(run({"training.steps": 5, "resume": True}))
    assert any(not torch.equal(before[name], after[name]) for name in before), "the run itself goes on"


# --- bad input on the way


def test_a_loss_that_is_not_finite_stops_and_resumes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run({"training.steps": 6, "output_dir": str(tmp_path / "whole")})
    take_step = Training.take_step

    def poisoned(self: Training, model: Any, batch: Any, step: int, *rest: Any) -> Any:
        if step == 3:
            with torch.no_grad():
                self.student.backbone.model.layernorm.weight.fill_(torch.nan)
        return take_step(self, model, batch, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "take_step", poisoned)
        with pytest.raises(
            DistillError, match=r"loss of step 3 is nan \(teachers .'simulator/pusht'.*from step 2 "
        ):
            run({"training.steps": 6})
    assert same(run({"training.steps": 6, "resume": True}), whole)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run({"output_dir": str(tmp_path / "whole")})
    take_step = Training.take_step

    def poisoned(self: Training, model: Any, batch: Any, step: int, *rest: Any) -> Any:
        if step == 3:  # the last one, after which checkpoint and result are written
            self.student.backbone.model.layernorm.weight.register_hook(lambda gradient: gradient * torch.nan)
        return take_step(self, model, batch, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "take_step", poisoned)
        with pytest.raises(
            DistillError,
            match=r"gradient of step 3 is nan \(images .* Resume from step 2 .* again, delete .*00000002",
        ):
            run()
    assert [folder.name for folder in whole_checkpoints(tmp_path / "run")] == ["00000002"]
    assert not (tmp_path / "run/student").exists()
    assert same(run({"resume": True}), whole)


def test_a_validation_loss_that_is_not_finite_stops(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, calls = training.validate, []

    def broken(*arguments: Any, **more: Any) -> Score:
        calls.append(1)
        score = real(*arguments, **more)
        return dataclasses.replace(score, loss=math.nan) if len(calls) == 3 else score

    monkeypatch.setattr(training, "validate", broken)
    with pytest.raises(DistillError, match="the validation loss of step 4 is nan"):
        run()
    assert [folder.name for folder in whole_checkpoints(tmp_path / "run")] == ["00000002"]


def test_damaged_statistics_are_named_and_made_again(run: Run) -> None:
    result = run()
    statistics = result.parent / "teacher_statistics.safetensors"
    whole = statistics.read_bytes()
    statistics.write_bytes(whole[:50])
    with pytest.raises(DistillError, match=r"teacher_statistics.safetensors is damaged .*delete it"):
        run({"resume": True, "training.steps": 5})
    statistics.unlink()
    run({"resume": True, "training.steps": 5})
    assert statistics.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": {}}, "no teacher is configured"),
        ({"corpus.sources": {}}, "the corpus has no source"),
        ({"teachers": {"m": {"type": "mujoco"}}}, "needs .*mujoco.*which no source has"),
        ({"teachers.twin": {"type": "pusht"}}, "two teachers are called 'simulator/pusht'"),
        (
            {"teachers": {"a": {"type": "pusht", "name": "a.b"}, "b": {"type": "pusht", "name": "a_b"}}},
            "cannot be called 'a_b'.* Give it another `name`",
        ),
        ({"training.epochs": 1}, "training.steps is 4, training.epochs 1: give one of them, and .* to null"),
        ({"training.steps": 0}, "training.steps is 0, must be above 0"),
        ({"training.batch_size": 2.5}, "training.batch_size is 2.5, expected int"),
        ({"training.learning_rte": 1}, "unknown setting training.learning_rte; did you mean learning_rate"),
        (
            {"training.train_blocks": 13, "student": {"init": "random-tiny"}},
            "training.train_blocks is 13; this student has 12 blocks",
        ),
        ({"training.clip_norm": 0.0}, r"training.clip_norm is 0.0, must be above 0 \(null: no clipping"),
        ({"training.clip_norm": -1.0}, "training.clip_norm is -1.0, must be above 0"),
        ({"training.learning_rate": 0.0}, "training.learning_rate is 0.0, must be above 0"),
        ({"training.validation_images": 0}, "training.validation_images is 0, must be above 0"),
        ({"training.pictures": -1}, "training.pictures is -1, must be at least 0"),
        ({"training.schedule": "cosin"}, "training.schedule is 'cosin', must be one of constant, cosine"),
        ({"training.warmup": 1.5}, "training.warmup is 1.5, must be a share of the steps"),
        ({"training.seed": -1}, "training.seed is -1, must be at least 0"),
        ({"training.seed": 2**32}, r"training.seed is 4294967296, must be at least 0 and below 2\^32"),
        (
            {"training.stages": [64]},
            r"training.stages is 64, expected settings by name, .*size: \.\.\., share",
        ),
        ({"student.num_layers": 0}, "student.num_layers is 0, must be at least 1"),
        ({"teachers.pusht.resolution": 0}, "resolution 0 must be a multiple of grid 16"),
        ({"corpus.sources.pusht.random_goals": 2.0}, "random_goals is 2.0, must be a share from 0 to 1"),
        ({"corpus.sources.pusht.seed": -1}, "pusht: seed is -1, must be at least 0"),
        ({"corpus.sources": {"../evil": {"type": "pusht"}}}, r"a source '\.\./evil': letters, digits"),
        (
            {"corpus.sources.pusht.name": "x"},
            r"sources\.pusht\.name: a source is called what it stands under",
        ),
        (
            {"corpus.sources.pusht": None},
            r"corpus\.sources\.pusht is None.* take it out with ~corpus\.sources\.",
        ),
        ({"teachers.pusht": None}, r"teachers\.pusht is None.* take it out with ~teachers\.pusht"),
        ({"training.betas": [0.9, 1.0]}, "training.betas are .*, must be from 0 up to 1"),
        ({"feature_batch_size": 0}, "feature_batch_size is 0, must be at least 1"),
        ({"corpus.allow_skipped": -1.0}, "corpus.allow_skipped is -1.0, must be a share"),
        ({"corpus.image_size": 0}, "corpus.image_size is 0, must be above 0"),
        ({"student.hidden_size": 100}, "student.hidden_size is 100, must be a multiple of 64"),
        ({"student.size": "huge"}, "student.size is 'huge', must be one of tiny, small, base"),
        (
            {"corpus.repeat": {"x": 2}},
            r"corpus.repeat names 'x'; the sources are .*out, too, with ~corpus\.repeat\.x",
        ),
        ({"corpus.repeat": {"pusht": 1.5}}, r"corpus.repeat.pusht is 1\.5, must be a whole number"),
        ({"corpus.repeat": {"pusht": "two"}}, r"corpus.repeat.pusht is 'two', must be a whole number"),
        ({"corpus.sources.pusht.validation": 0.0}, "no image is in the validation split"),
        ({"device": "tpu"}, "device is 'tpu', must be null, cpu or cuda"),
        ({"until": "lunch"}, "until is 'lunch', must be null, corpus or features"),
    ],
)
def test_bad_settings_are_named_before_work_begins(run: Run, change: Values, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        run(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training.train_blocks": 1}, "trains the last blocks of a student, but student.init names none"),
        ({"student": {"init": "/nowhere/to/be/found"}}, "/nowhere/to/be/found"),
        ({"training.batch_size": 8, "resume": True}, "made with batch_size=4, configured is 8"),
        ({"teachers.pusht.resolution": 32, "resume": True}, r"in another form: simulator/pusht"),
        ({"corpus.image_size": 64, "resume": True}, "made with image_size=224"),
        ({"corpus.sources.pusht.validation": 0.0}, "no image is in the validation split"),
        ({"teachers": {"m": {"type": "mujoco"}}}, "needs .*mujoco.*which no source has"),
        ({"device": "cuda"}, "device=cuda, but this machine has no CUDA device"),
    ],
)
def test_what_can_be_known_before_a_picture_is_drawn_is_said_then(
    run: Run, change: Values, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change.get("resume"):
        run()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "lerobot_theia.distill.run.pack_corpus", lambda *_: pytest.fail("pictures were drawn")
    )
    with pytest.raises((DistillError, OSError), match=message):
        run(change)


def test_a_folder_belongs_to_one_run_at_a_time(run: Run, tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "run"),
        pytest.raises(DistillError, match=rf"output_dir=.*run is in use by process {os.getpid()} on "),
    ):
        run()
    assert run({"until": "corpus"}), "which writes nothing there"
    run()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_folder_that_cannot_be_is_said_before_a_picture_is_drawn(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lerobot_theia.distill.run.pack_corpus", lambda *_: pytest.fail("pictures were drawn")
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillError, match=r"output_dir=.*/file cannot be written to \(File exists\)"):
        run({"output_dir": str(tmp_path / "file")})
    with pytest.raises(DistillError, match=r"output_dir=.*/file/run cannot be written to"):
        run({"output_dir": str(tmp_path / "file" / "run")})


def test_a_full_disk_says_how_to_go_on_with_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write

    def full(file: BinaryIO, data: Buffer, offset: int) -> None:
        if "checkpoints" in str(file.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data, offset)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(
        DistillError, match=r"cannot write .*checkpoints.*No space left on device.*output_dir=.*resume=true"
    ):
        run()
    monkeypatch.undo()
    run({"resume": True})


def test_precision_and_batches_are_those_of_the_settings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` sets these from a configuration of its own, made for other programs."""
    plain = run()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert same(plain, run({"output_dir": str(tmp_path / "launched")}))


def test_a_launcher_that_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(DistillError, match=r"set up for FSDP, which shards .*accelerate launch --multi_gpu"):
        make_accelerator("cpu", partial=False)


def test_processes_share_a_batch_evenly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(DistillError, match="batch_size is 4, which 3 processes cannot share out evenly"):
        run()


def test_changed_images_are_named_when_a_run_is_resumed(
    run: Run, picture_folder: Path, tmp_path: Path
) -> None:
    pictures = {"type": "folder", "path": str(picture_folder), "license": "mit"}
    changes = {
        "corpus.sources": {"pictures": pictures, "pusht": {"type": "pusht", "images": 20, "validation": 0.2}},
        "teachers.vit": {"type": "vision", "model": str(write_teacher(tmp_path / "tiny-vit", "vit"))},
    }
    run(changes)
    in_another_order = dict(reversed(list(changes["corpus.sources"].items())))
    with pytest.raises(DistillError, match=r"made from the sources pictures, pusht in this order"):
        run({**changes, "corpus.sources": in_another_order, "resume": True})
    manifest = picture_folder / "manifest.csv"
    lines = manifest.read_text()
    manifest.write_text(lines.replace("01.png,train", "01.png,validation"))
    with pytest.raises(DistillError, match=r"other images are in the training split than when checkpoint"):
        run({**changes, "resume": True})
    manifest.write_text(lines)
    Image.new("RGB", (30, 30)).save(picture_folder / "00.jpg")
    with pytest.raises(
        DistillError, match=r"images of source pictures are not those that .*: put them back as they were"
    ):
        run({**changes, "resume": True})


def test_a_lost_log_changes_no_provenance(run: Run) -> None:
    result = run()
    first = provenance(result)["validation"]["first"]
    (result.parent / "metrics.jsonl").write_text("[1]\n")
    assert provenance(run({"resume": True, "training.steps": 6}))["validation"]["first"] == first


def test_a_corpus_may_be_drawn_before_the_weights_are_there(run: Run) -> None:
    assert not run({"until": "corpus", "student": {"init": "/nowhere/to/be/found"}}).exists()


def test_a_source_without_a_teacher_is_refused(run: Run, picture_folder: Path) -> None:
    source = {"type": "folder", "path": str(picture_folder), "license": "mit"}
    with pytest.raises(DistillError, match="source 'pictures' has no teacher"):
        run({"corpus.sources.pictures": source})


# --- other ways to train


def test_several_teachers_of_several_sources(run: Run, picture_folder: Path, tmp_path: Path) -> None:
    heard = Heard()
    result = run(
        {
            "corpus.sources.pictures": {
                "type": "folder",
                "path": str(picture_folder),
                "license": "cc-by-nc-4.0",
            },
            "teachers.vit": {"type": "vision", "model": str(write_teacher(tmp_path / "tiny-vit", "vit"))},
            "teachers.sam": {
                "type": "vision",
                "model": str(write_teacher(tmp_path / "tiny-sam", "sam")),
                "features": "on_the_fly",
                "weight": 0.5,
            },
            "training.batch_size": 8,
        },
        watcher=heard,
    )
    encoder = TheiaEncoder.from_pretrained(result)
    assert encoder.teachers == (TEACHER, "tiny-vit", "tiny-sam")
    found = provenance(result)
    assert found["corpus"]["evaluation_seeds"] == (
        "100000 and up; not known of pictures; no other source used one"
    )
    assert found["commercial_use"] == "forbidden" and "source pictures (cc-by-nc-4.0)" in found["license"]
    assert encoder.spec.license == found["license"]
    assert [teacher["sources"] for teacher in found["teachers"]] == [["pusht"], *[["pusht", "pictures"]] * 2]
    assert [teacher["features"] for teacher in found["teachers"]][1:] == [
        "extracted, bfloat16",
        "computed on the fly",
    ]
    last = [line for line in heard.lines if "validation" in line][-1]["validation"]
    assert {name: score["images"] for name, score in last["teachers"].items()} == {
        TEACHER: 6, "tiny-vit": 8, "tiny-sam": 8,
    }  # fmt: skip
    assert any("licence of the result: non-commercial" in text for text in heard.said)
    assert str(tmp_path) not in json.dumps(found), "no paths of this machine"


def test_extracted_and_computed_features_teach_alike(run: Run, tmp_path: Path) -> None:
    vit = {"type": "vision", "model": str(write_teacher(tmp_path / "tiny-vit", "vit"))}
    losses = []
    for mode in ("extracted", "on_the_fly"):
        heard = Heard()
        run(
            {"teachers": {"vit": {**vit, "features": mode}}, "output_dir": str(tmp_path / mode)},
            watcher=heard,
        )
        losses.append([line["validation"]["loss"] for line in heard.lines if "validation" in line])
    assert losses[0] == pytest.approx(losses[1], rel=0.01), "but for bfloat16, and statistics of all images"


def test_stopping_early_keeps_what_is_done(run: Run, values: Values) -> None:
    folder = run({"until": "corpus"})
    assert not folder.exists()
    run()


def test_fine_tuning_trains_the_last_blocks_only(run: Run, tmp_path: Path) -> None:
    first = run()
    tuned = run(
        {
            "output_dir": str(tmp_path / "tuned"),
            "student": {"name": "tuned", "init": str(first)},
            "training.train_blocks": 1,
        }
    )
    before, after = weights(first), weights(tuned)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("backbone.model.encoder.layer.1.") for name in changed)
    assert any(name.startswith("translator.") for name in changed)
    assert "backbone.model.layernorm.weight" in changed
    frozen = ("backbone.model.embeddings.", "backbone.model.encoder.layer.0.")
    assert not any(name.startswith(frozen) for name in changed)
    assert provenance(tuned)["student"]["init_license"] == "Apache-2.0"
    assert provenance(tuned)["student"]["heads_from_scratch"] == []


def test_a_student_of_weights_that_may_not_be_sold_may_not_be_sold(run: Run, tmp_path: Path) -> None:
    first = run()
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"license": "research only, non-commercial"}))
    tuned = run({"output_dir": str(tmp_path / "tuned"), "student": {"init": str(first)}})
    assert provenance(tuned)["commercial_use"] == "forbidden"


def test_heads_of_new_teachers_begin_anew(run: Run, tmp_path: Path) -> None:
    first = run()
    result = run(
        {
            "output_dir": str(tmp_path / "more"),
            "student": {"init": str(first)},
            "teachers.more": {"type": "pusht", "name": "simulator/more", "resolution": 16},
        }
    )
    assert provenance(result)["student"]["heads_from_scratch"] == ["simulator/more"]


def test_a_head_of_another_size_begins_anew_as_a_whole(run: Run, tmp_path: Path) -> None:
    """Not with those of its tensors that happen to fit."""
    first = run()

    def beginning(init: str | None) -> Beginning:
        settings = StudentSettings(
            hidden_size=None if init else 64, num_layers=None if init else 2, init=init
        )
        return make_student(settings, {"simulator/pusht": (4, 64, 64)}, license="", seed=3)

    begun, drawn = beginning(str(first)), beginning(None)
    assert begun.new_heads == ("simulator/pusht",)
    for name, tensor in drawn.student.translator.state_dict().items():
        assert torch.equal(begun.student.translator.state_dict()[name], tensor)


def test_bfloat16_and_a_loss_that_falls(run: Run) -> None:
    result = run({"training.bf16": True, "training.steps": 12, "training.clip_norm": 1.0})
    scores = provenance(result)["validation"]
    assert scores["last"]["loss"] < scores["first"]["loss"]
    assert all(t.dtype == torch.float32 for t in weights(result).values())
