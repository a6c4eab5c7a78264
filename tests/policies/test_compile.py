"""`--policy.compile_model=true`"""

import copy
import logging

import pytest
import torch

from lerobot_theia.encoder import names
from lerobot_theia.encoder.backbone import Backbone
from tests.policies.conftest import (
    AUGMENTED,
    CLASSES,
    POLICIES,
    make_policy,
    observation,
    training_batch,
    with_tokens,
)


def loss_of(policy, batch) -> torch.Tensor:
    torch.manual_seed(1)
    return policy.forward(dict(batch))[0]


@pytest.mark.parametrize("kind", POLICIES)
def test_a_compiled_policy_is_the_same_policy(kind, caplog, tmp_path, monkeypatch):
    """With the graph captured and differentiated as always, and run without code generation, which takes minutes."""
    capture = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, mode: capture(forward, backend="aot_eager"))
    changes = AUGMENTED | {"token_head": "compression"} | ({"use_vae": False} if kind == "theia_act" else {})
    eager = make_policy(kind, **changes).train()
    compiled = make_policy(kind, compile_model=True, **changes).train()
    batch = with_tokens(training_batch(eager), eager, torch.float16)
    torch.testing.assert_close(loss_of(compiled, batch), loss_of(eager, batch), rtol=1e-4, atol=1e-5)
    loss_of(compiled, batch).backward()
    assert "running eagerly" not in caplog.text
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    compiled.save_pretrained(tmp_path)
    CLASSES[kind][1].from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_copy_of_a_compiled_policy_has_weights_of_its_own(kind, monkeypatch):
    capture = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, mode: capture(forward, backend="eager"))
    policy = make_policy(kind, compile_model=True).train()
    batch = with_tokens(training_batch(policy), policy, torch.float16)
    before = loss_of(policy, batch)
    average = copy.deepcopy(policy)
    assert loss_of(average, batch) == before
    with torch.no_grad():
        for parameter in (
            average.get_optim_params()[0]["params"] if kind == "theia_act" else average.get_optim_params()
        ):
            parameter.zero_()
    assert loss_of(average, batch) != before
    assert loss_of(policy, batch) == before


@pytest.mark.parametrize("kind", POLICIES)
def test_a_compiled_policy_acts_the_same_and_encodes_compiled_too(kind, caplog, monkeypatch):
    capture, captured = torch.compile, []

    def compile_and_count(forward, mode):
        captured.append(type(forward.__self__))
        return capture(forward, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_and_count)
    steps = {"num_inference_steps": 2} if kind == "theia_diffusion" else {}
    eager, compiled = (make_policy(kind, compile_model=each, **steps).eval() for each in (False, True))
    assert len(captured) == 2
    assert Backbone in captured
    for size in (1, 2):  # another number of environments is another shape
        actions = []
        for policy in (eager, compiled):
            policy.reset()
            torch.manual_seed(1)
            with torch.inference_mode():
                actions.append(policy.select_action(observation(policy, size)))
        torch.testing.assert_close(*actions, rtol=1e-4, atol=1e-5)
    assert "running eagerly" not in caplog.text


@pytest.mark.parametrize("kind", POLICIES)
def test_where_it_does_not_compile_it_warns_once_and_runs_eagerly(kind, caplog, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    monkeypatch.setattr(names, "_noticed", set())
    caplog.set_level(logging.WARNING)
    policy = make_policy(kind, compile_model=True).train()
    batch = with_tokens(
        training_batch(policy), policy, torch.float16
    )  # by the encoder, which does not compile either
    first, second = loss_of(policy, batch), loss_of(policy, batch)
    assert first == second == loss_of(make_policy(kind).train(), batch)
    assert caplog.text.count("not compiled, running eagerly: no compiler here") == 1
