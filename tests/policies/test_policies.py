"""Both policies, in training: frozen encoder, cached and online alike, checkpoints that stand on their own."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import draccus
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file, save_file

from lerobot_theia.cache.storage import encode_tokens
from lerobot_theia.data.keys import scale_key, tokens_key
from lerobot_theia.data.settings import DEFAULT_ENCODER
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.policies.common.configuration import InvalidSettingError
from lerobot_theia.policies.common.heads import AttentionHead
from tests.encoder.published_layout import write_published_checkpoint
from tests.policies.conftest import (
    CLASSES,
    ONE_CAMERA,
    POLICIES,
    TWO_CAMERAS,
    make_config,
    make_policy,
    token_statistics,
    training_batch,
    with_tokens,
)

HEADS = ("spatial_softmax", "compression", "attention", "flatten", "mean")
WIDE_HEADS = ("attention", "flatten", "mean")
ACT_HEADS = ("linear", "compression")


def loss_of(policy, batch) -> torch.Tensor:
    torch.manual_seed(1)  # dropout, diffusion noise and VAE samples
    return policy.forward(dict(batch))[0]


@pytest.mark.parametrize("kind", POLICIES)
def test_lerobot_finds_the_policy_by_its_type(kind):
    assert PreTrainedConfig.get_choice_class(kind) is CLASSES[kind][0]
    assert get_policy_class(kind) is CLASSES[kind][1]
    config = make_config(kind)
    assert config.type == CLASSES[kind][1].name == kind
    preprocessor, postprocessor = make_pre_post_processors(config, dataset_stats={})
    assert preprocessor.steps
    assert postprocessor.steps


@pytest.mark.parametrize(
    "cameras", [ONE_CAMERA, TWO_CAMERAS], ids=["one camera", "two cameras of different size"]
)
@pytest.mark.parametrize("kind", POLICIES)
def test_cached_and_online_are_the_same_policy(kind, cameras):
    policy = make_policy(kind, cameras).train()
    batch = training_batch(policy)
    online = loss_of(policy, batch)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        cached = loss_of(policy, with_tokens(batch, policy, dtype))
        assert cached.item() == pytest.approx(online.item(), rel=tolerance)


@pytest.mark.parametrize("kind", POLICIES)
def test_int8_tokens_are_decoded_on_the_device(kind):
    policy = make_policy(kind).train()
    batch = training_batch(policy)
    cached = with_tokens(batch, policy, torch.float32)
    key = tokens_key("observation.image")
    stored = encode_tokens(cached[key].flatten(0, -3), "int8")
    cached[key] = stored.tokens.view(cached[key].shape)
    cached[scale_key("observation.image")] = stored.scale.view(cached[key].shape[:-1])
    assert loss_of(policy, cached).item() == pytest.approx(loss_of(policy, batch).item(), rel=2e-2)


@pytest.mark.parametrize("kind", POLICIES)
def test_pooled_tokens_apply_to_cached_and_live_frames_alike(kind):
    policy = make_policy(kind, token_pool=2).train()
    batch = training_batch(policy)
    assert policy.features.map_shape == (192, 7, 7)
    cached = loss_of(policy, with_tokens(batch, policy, torch.float32))
    assert cached.item() == pytest.approx(loss_of(policy, batch).item(), rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shared", [True, False], ids=["one head for all cameras", "a head per camera"])
def test_each_token_head_learns_and_sees(head, shared):
    policy = make_policy(
        "theia_diffusion",
        TWO_CAMERAS,
        token_head=head,
        **({"token_head_dim": 16} if head in WIDE_HEADS else {}),
        use_separate_rgb_encoder_per_camera=not shared,
    ).train()
    batch = with_tokens(training_batch(policy), policy, torch.float32)
    loss_of(policy, batch).backward()
    parameters = dict(policy.diffusion.rgb_encoder.named_parameters())
    assert parameters
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters.values()
    )
    key = tokens_key("observation.images.wrist")
    changed = batch | {key: batch[key].flip(-2)}
    if head != "mean":  # the mean does not know where a token is
        assert loss_of(policy, changed) != loss_of(policy, batch)
    # Adding to all tokens alike would be no change to a softmax over positions.
    assert loss_of(policy, batch | {key: batch[key].flip(-1)}) != loss_of(policy, batch)


@pytest.mark.parametrize("head", ACT_HEADS)
def test_each_token_head_of_act_learns_and_sees(head):
    policy = make_policy("theia_act", TWO_CAMERAS, token_head=head).train()
    batch = with_tokens(training_batch(policy), policy, torch.float32)
    loss_of(policy, batch).backward()
    parameters = [
        *policy.model.token_head.parameters(),
        *policy.model.encoder_img_feat_input_proj.parameters(),
    ]
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in parameters)
    key = tokens_key("observation.images.wrist")
    for dim in (-2, -1):
        assert loss_of(policy, batch | {key: batch[key].flip(dim)}) != loss_of(policy, batch)


def test_a_token_head_of_act_learns_at_the_policys_learning_rate():
    """LeRobot's preset has another one for what it calls the backbone."""
    policy = make_policy("theia_act", token_head="compression", token_head_dim=16, optimizer_lr=1e-3)
    rates = {
        parameter: group.get("lr", policy.config.optimizer_lr)
        for group in policy.get_optim_params()
        for parameter in group["params"]
    }
    head = list(policy.model.token_head.parameters())
    assert head and {rates[each] for each in head} == {1e-3}


def test_the_attention_head_is_torchs_attention_of_one_query():
    torch.manual_seed(0)
    head = AttentionHead((6, 3, 4), feature_dim=16).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))  # biases begin at 0
    maps = torch.randn(5, 6, 3, 4, dtype=torch.float64)

    def formula(maps):
        tokens = head.project(maps.flatten(2).transpose(1, 2)) + head.position
        return head.norm(head.attention(head.query.expand(5, 1, -1), tokens, tokens)[0].squeeze(1))

    def outcome(forward):
        head.zero_grad()
        features = forward(maps)
        features.sin().sum().backward()
        return {"features": features} | {name: each.grad for name, each in head.named_parameters()}

    torch.testing.assert_close(outcome(head), outcome(formula), atol=1e-10, rtol=1e-9)


def test_a_single_observation_step_comes_with_or_without_its_dimension():
    """LeRobot leaves the step dimension of a one-frame window out for videos, and keeps it for all else."""
    policy = make_policy("theia_diffusion", n_obs_steps=1).train()
    batch = training_batch(policy)
    squeezed = batch | {"observation.image": batch["observation.image"].squeeze(1)}
    assert loss_of(policy, squeezed) == loss_of(policy, batch)
    cached = loss_of(policy, with_tokens(batch, policy, torch.float32))
    assert cached.item() == pytest.approx(loss_of(policy, batch).item(), rel=1e-5)


def test_act_takes_each_patch_as_a_token_with_its_position():
    policy = make_policy("theia_act", TWO_CAMERAS).eval()
    seen = []
    policy.model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args[0].shape, kwargs["pos_embed"].shape)),
        with_kwargs=True,
    )
    policy.predict_action_chunk({k: v for k, v in training_batch(policy).items() if k != ACTION})
    tokens, positions = seen[0]
    assert tokens[0] == positions[0] == 2 + 2 * 196  # latent, state, and the patches of two cameras


@pytest.mark.parametrize("kind", POLICIES)
def test_the_encoder_is_frozen_in_every_sense(kind):
    policy = make_policy(kind).train()
    encoder = policy.features.encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())

    config = policy.config.get_optimizer_preset()
    optimizer = config.build(policy.get_optim_params())
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(parameter) for parameter in encoder.parameters()}
    trainable = {id(p) for p in policy.parameters() if p.requires_grad}
    assert optimized == trainable

    loss_of(policy, training_batch(policy)).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("kind", POLICIES)
def test_training_from_tokens_never_runs_the_encoder(kind, count_encoded):
    policy = make_policy(kind, features="cached").train()
    batch = with_tokens(training_batch(policy), policy, torch.float16)
    count_encoded().clear()
    loss_of(policy, batch)
    assert count_encoded() == []


@pytest.mark.parametrize("kind", POLICIES)
def test_cached_refuses_frames_in_training_but_not_in_rollouts(kind):
    policy = make_policy(kind, features="cached").train()
    with pytest.raises(RuntimeError, match=r"features=cached.*frames.*observation\.image"):
        policy.forward(training_batch(policy))
    policy.eval().forward(training_batch(policy))


@pytest.mark.parametrize("changes", [{}, {"token_head": "compression"}], ids=["default head", "compression"])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_checkpoint_stands_on_its_own(kind, changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = make_policy(kind, TWO_CAMERAS, **changes).eval()
    policy.save_pretrained(tmp_path / "checkpoint")
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "elsewhere")
    monkeypatch.setattr(
        TheiaEncoder, "from_pretrained", lambda *_, **__: pytest.fail("a checkpoint must not load an encoder")
    )
    loaded = CLASSES[kind][1].from_pretrained(tmp_path / "elsewhere")
    batch = training_batch(policy)
    assert torch.equal(loss_of(loaded, batch), loss_of(policy, batch))
    assert loaded.config.encoder_spec == policy.features.encoder.spec
    assert not loaded.config.encoder_spec.trained  # the checkpoint says what its encoder is


def test_an_encoder_that_was_changed_in_the_checkpoint_is_refused(tmp_path: Path):
    make_policy("theia_act").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("cls_token"))
    tensors[name][0, 0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights"):
        CLASSES["theia_act"][1].from_pretrained(tmp_path)


def test_a_checkpoint_without_its_encoder_is_refused(tmp_path: Path):
    make_policy("theia_act").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "encoder.backbone" not in k}, tmp_path / "model.safetensors"
    )
    with pytest.raises(RuntimeError, match="cls_token"):
        CLASSES["theia_act"][1].from_pretrained(tmp_path)


def test_a_checkpoint_whose_config_does_not_describe_the_encoder_is_refused(tmp_path: Path):
    make_policy("theia_act").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder_spec"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="encoder_spec"):
        CLASSES["theia_act"][1].from_pretrained(tmp_path)


def test_another_encoder_cannot_be_asked_of_a_checkpoint(tmp_path: Path):
    make_policy("theia_act").save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--encoder=random-small"])
    with pytest.raises(ValueError, match=r"random-tiny.*random-small"):
        CLASSES["theia_act"][1].from_pretrained(tmp_path, config=config)


def test_nor_one_from_a_folder_unless_it_is_the_same(tmp_path: Path):
    """Whose place may be another by now."""
    first = write_published_checkpoint(tmp_path / "first")
    other = shutil.copytree(first, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    next(each for name, each in tensors.items() if name.endswith("cls_token")).add_(1)
    save_file(tensors, other / "model.safetensors")
    policy = make_policy("theia_act", encoder=str(first))
    policy.save_pretrained(tmp_path / "checkpoint")
    moved = first.rename(tmp_path / "moved")
    asked = (f"--encoder={folder}" for folder in (moved, other))
    same, another = (
        PreTrainedConfig.from_pretrained(tmp_path / "checkpoint", cli_overrides=[each]) for each in asked
    )
    loaded = CLASSES["theia_act"][1].from_pretrained(tmp_path / "checkpoint", config=same)
    assert loaded.config.encoder == str(moved)
    with pytest.raises(ValueError, match=r"leave --policy\.encoder out"):
        CLASSES["theia_act"][1].from_pretrained(tmp_path / "checkpoint", config=another)


def test_a_config_of_flags_takes_the_checkpoints_encoder(tmp_path: Path):
    """`--policy.type=theia_act --policy.pretrained_path=...`"""
    policy = make_policy("theia_act").eval()
    policy.save_pretrained(tmp_path)
    flags = make_config("theia_act", encoder=DEFAULT_ENCODER)
    loaded = CLASSES["theia_act"][1].from_pretrained(tmp_path, config=flags)
    batch = training_batch(policy)
    assert torch.equal(loss_of(loaded, batch), loss_of(policy, batch))
    assert loaded.config.encoder == "random-tiny"
    with pytest.raises(ValueError, match=r"random-tiny.*random-small"):
        CLASSES["theia_act"][1].from_pretrained(
            tmp_path, config=make_config("theia_act", encoder="random-small")
        )


@pytest.mark.parametrize("kind", POLICIES)
def test_a_checkpoint_keeps_its_cameras_its_grid_and_its_head(kind: str, tmp_path: Path):
    """Its weights and statistics are those of the first camera, the second, ..., whatever they are called."""
    policy = make_policy(kind, TWO_CAMERAS, token_pool=7)
    policy.save_pretrained(tmp_path)
    flags = make_config(kind, {}, input_features={}, encoder=DEFAULT_ENCODER, token_pool=7)
    loaded = CLASSES[kind][1].from_pretrained(tmp_path, config=flags)
    assert list(loaded.config.image_features) == list(TWO_CAMERAS)
    turned = dict(reversed(TWO_CAMERAS.items()))
    with pytest.raises(
        ValueError, match=r"cameras \['observation.images.top', .*wrist'\], in this order, .*wrist"
    ):
        CLASSES[kind][1].from_pretrained(tmp_path, config=make_config(kind, turned, token_pool=7))
    with pytest.raises(
        ValueError, match=r"token_pool=7, and is to be loaded with 2; .*--policy.token_pool=7"
    ):
        CLASSES[kind][1].from_pretrained(tmp_path, config=make_config(kind, TWO_CAMERAS, token_pool=2))
    other = make_config(kind, TWO_CAMERAS, token_pool=7, token_head="compression")
    its_own = policy.config.token_head
    with pytest.raises(
        ValueError, match=rf"with token_head={its_own}.*compression; .*--policy.token_head={its_own}"
    ):
        CLASSES[kind][1].from_pretrained(tmp_path, config=other)


@pytest.mark.parametrize("use_vae", [True, False])
def test_act_does_without_a_state(use_vae: bool):
    cameras = {name: PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in ONE_CAMERA.items()}
    policy = make_policy("theia_act", input_features=cameras, use_vae=use_vae).train()
    batch = training_batch(policy)
    del batch[OBS_STATE]
    loss_of(policy, batch).backward()
    policy.eval().reset()
    assert policy.select_action({name: batch[name] for name in cameras}).shape == (2, 2)


@pytest.mark.parametrize("place", ["theia-tiny-cdiv", "mine"])
def test_a_policy_with_an_encoder_from_a_folder_loads_without_the_folder(place, tmp_path: Path):
    """Even from a folder named like a published encoder, which is where an offline machine would keep one."""
    folder = write_published_checkpoint(tmp_path / place)
    policy = make_policy("theia_act", encoder=str(folder)).eval()
    policy.save_pretrained(tmp_path / "checkpoint")
    shutil.rmtree(folder)
    loaded = CLASSES["theia_act"][1].from_pretrained(tmp_path / "checkpoint")
    batch = training_batch(policy)
    assert torch.equal(loss_of(loaded, batch), loss_of(policy, batch))


def test_a_trained_encoder_makes_the_model_card_say_other_than_apache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ModelCard, "validate", lambda card: None)
    folder = write_published_checkpoint(tmp_path / "copy")
    card = make_policy("theia_act", encoder=str(folder)).generate_model_card(
        "local/pusht", "theia_act", None, None
    )
    assert card.data.license == "other"
    assert "non-commercial" in card.text


@pytest.mark.parametrize("bad", [np.full(192, np.nan), np.ones(1), np.ones(384)])
def test_statistics_that_cannot_be_are_refused(bad):
    stats = token_statistics(ONE_CAMERA)
    stats["observation.theia.image"]["std"] = bad
    with pytest.raises(ValueError, match="192 finite numbers"):
        CLASSES["theia_act"][1](make_config("theia_act"), dataset_stats=stats)


def test_a_channel_without_variation_does_not_blow_up_rounding():
    stats = token_statistics(ONE_CAMERA)
    stats["observation.theia.image"]["std"][:] = 0
    policy = CLASSES["theia_act"][1](make_config("theia_act"), dataset_stats=stats)
    tokens = torch.from_numpy(stats["observation.theia.image"]["mean"]).expand(1, 196, 192)
    maps = policy.features.to_map("observation.image", tokens.half().float())
    assert maps.abs().max() < 1


def test_spatial_softmax_on_one_token_is_refused():
    with pytest.raises(ValueError, match="1x1 grid"):
        make_policy("theia_diffusion", token_pool=14)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_without_token_statistics_is_refused(kind):
    with pytest.raises(ValueError, match=r"no token statistics for camera 'observation\.image'"):
        CLASSES[kind][1](make_config(kind), dataset_stats={})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("theia_act", "vision_backbone", "resnet50"),
        ("theia_act", "optimizer_lr_backbone", 1e-4),
        ("theia_diffusion", "crop_shape", (84, 84)),
        ("theia_diffusion", "resize_shape", (112, 112)),
        ("theia_diffusion", "use_group_norm", True),
    ],
)
def test_settings_of_the_replaced_resnet_are_refused(kind, field, value):
    with pytest.raises(InvalidSettingError, match=field):
        make_config(kind, **{field: value})


@pytest.mark.parametrize("kind", POLICIES)
def test_normalised_images_are_refused(kind):
    modes = {
        "VISUAL": NormalizationMode.MEAN_STD,
        "STATE": NormalizationMode.MEAN_STD,
        "ACTION": NormalizationMode.MEAN_STD,
    }
    with pytest.raises(InvalidSettingError, match="IDENTITY"):
        make_config(kind, normalization_mapping=modes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "fast"}, "auto, cached, online"),
        ({"token_pool": 0}, "token_pool=0"),
        ({"cache_dtype": "fp16"}, "float32, float16, bfloat16, int8"),
        ({"token_head": "cls"}, "spatial_softmax"),
    ],
)
def test_unknown_choices_list_the_known_ones(changes, message):
    with pytest.raises(InvalidSettingError, match=message):
        make_config("theia_diffusion", **changes)


def test_act_has_token_heads_of_its_own():
    with pytest.raises(InvalidSettingError, match="token_head='flatten'; choose one of linear, compression"):
        make_config("theia_act", token_head="flatten")


@pytest.mark.parametrize(
    ("kind", "head", "dim", "message"),
    [
        ("theia_diffusion", "flatten", 0, "token_head_dim=0 must be at least 1"),
        ("theia_act", "compression", -1, "token_head_dim=-1 must be at least 1"),
        (
            "theia_diffusion",
            "compression",
            128,
            "no effect on token_head=compression; .*: attention, flatten, mean",
        ),
        (
            "theia_diffusion",
            "spatial_softmax",
            128,
            "no effect on token_head=spatial_softmax; leave it at 256",
        ),
        ("theia_act", "linear", 128, "no effect on token_head=linear; .* whose width it is: compression"),
    ],
)
def test_the_width_of_a_token_head_is_one_and_has_an_effect(kind, head, dim, message):
    with pytest.raises(InvalidSettingError, match=message):
        make_config(kind, token_head=head, token_head_dim=dim)


@pytest.mark.parametrize(
    ("head", "number", "message"),
    [
        ("spatial_softmax", 0, "spatial_softmax_num_keypoints=0 must be at least 1"),
        ("mean", 16, "no effect on token_head=mean; leave it at 32, or choose token_head=spatial_softmax"),
    ],
)
def test_so_is_the_number_of_keypoints(head, number, message):
    with pytest.raises(InvalidSettingError, match=message):
        make_config("theia_diffusion", token_head=head, spatial_softmax_num_keypoints=number)


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        (
            "theia_act",
            ["--policy.vision_backbone=resnet34"],
            "vision_backbone='resnet34' concerns the ResNet",
        ),
        (
            "theia_diffusion",
            ["--policy.features=cache"],
            "features='cache'; choose one of auto, cached, online",
        ),
        ("theia_diffusion", ["--policy.token_dropout=-0.1"], "token_dropout=-0.1 must be a probability"),
        ("theia_act", ["--policy.n_action_steps=50", "--policy.chunk_size=10"], "n_action_steps"),
    ],
)
def test_the_command_line_says_what_is_wrong(kind, flags, message):
    """As `lerobot-train` parses it: of a ValueError, nothing would be shown."""
    arguments = ["--dataset.repo_id=a/b", f"--policy.type={kind}", "--policy.push_to_hub=false", *flags]
    with pytest.raises(draccus.utils.DecodingError) as error:
        draccus.parse(TrainPipelineConfig, args=arguments)
    assert message in str(error.value)


def test_a_pool_that_does_not_tile_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"pool=4 does not tile the 14x14"):
        make_policy("theia_act", token_pool=4)


@pytest.mark.parametrize("kind", POLICIES)
def test_the_compression_head_says_that_it_takes_14x14(kind):
    with pytest.raises(ValueError, match=r"14x14.*7x7"):
        make_policy(kind, token_head="compression", token_pool=2)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_without_cameras_is_refused(kind):
    with pytest.raises(ValueError, match="at least one camera"):
        make_policy(kind, {})


@pytest.mark.parametrize("kind", POLICIES)
def test_a_grayscale_camera_is_refused(kind):
    config = make_config(kind)
    config.input_features["observation.image"].shape = (1, 96, 96)
    with pytest.raises(ValueError, match=r"'observation\.image'.*\(1, 96, 96\)"):
        config.validate_features()


@pytest.mark.parametrize("kind", POLICIES)
def test_pushing_to_the_hub_uploads_a_checkpoint_that_loads(
    kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The Hub is a folder here: whatever LeRobot uploads is copied into it."""

    class Hub:
        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path, allow_patterns, **_):
            files = filter_repo_objects(
                [path.name for path in Path(folder_path).iterdir()], allow_patterns=allow_patterns
            )
            (tmp_path / "hub").mkdir()
            for name in files:
                shutil.copy(Path(folder_path) / name, tmp_path / "hub" / name)
            return SimpleNamespace(repo_url=SimpleNamespace(url="hub"))

    monkeypatch.setattr("lerobot.policies.pretrained.HfApi", Hub)
    monkeypatch.setattr(ModelCard, "validate", lambda card: None)
    policy = make_policy(kind).eval()
    policy.config.repo_id = "me/my-policy"
    train_config = TrainPipelineConfig(dataset=DatasetConfig(repo_id="local/tiny"), policy=policy.config)
    policy.push_model_to_hub(train_config)
    assert "random-tiny" in (tmp_path / "hub" / "README.md").read_text()
    loaded = CLASSES[kind][1].from_pretrained(tmp_path / "hub")
    batch = training_batch(policy)
    assert torch.equal(loss_of(loaded, batch), loss_of(policy, batch))


def test_the_model_card_names_the_encoder_and_its_licence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ModelCard, "validate", lambda card: None)  # LeRobot asks the Hub
    card = make_policy("theia_act").generate_model_card("local/pusht", "theia_act", None, None)
    assert "random-tiny" in card.text
    assert "untrained" in card.text
    assert "Licence of the encoder" in card.text
    assert card.data.license == "apache-2.0"
