"""The tokenizer stage: sums over pictures, keyed noise, a critic in the same loop."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nextstep.train.stages.tokenizer import (
    PARTS,
    PictureBatch,
    TokenizerModel,
    TokenizerStage,
    reconstruction_parts,
)
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.discriminator import Critic, adversarial_loss, critic_loss
from nextstep.vae.latents import normalise_latents
from nextstep.vae.perceptual import FeatureNet

SMALL = AutoencoderConfig((8, 8), 1, 4, 4)
SAMPLED = replace(SMALL, deterministic=False)
ALL = dict.fromkeys(PARTS, 0.5)
WITHOUT_KL = {name: 0.5 for name in PARTS if name != "kl"}


@pytest.fixture(scope="module")
def features() -> FeatureNet:
    torch.manual_seed(5)
    return FeatureNet((0, 1))  # random weights: the stage must not care


def pictures(count: int = 4, side: int = 16) -> PictureBatch:
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return PictureBatch(pixels, tuple(range(10, 10 + count)))


def network(config: AutoencoderConfig = SMALL) -> Autoencoder:
    torch.manual_seed(3)
    return Autoencoder(config)


def total(stage: TokenizerStage, model: TokenizerModel, batches: list[PictureBatch]) -> Tensor:
    """What the loop minimises over the micro-batches of a step."""
    ready = [stage.prepare(batch, "cpu") for batch in batches]
    sums = [stage.losses(model, batch) for batch in ready]
    counts = [stage.counts(batch) for batch in ready]
    return sum(
        weight * sum(s[name] for s in sums) / sum(c[name] for c in counts)
        for name, weight in stage.loss_weights.items()
    )


def parts_of(batch: PictureBatch) -> list[PictureBatch]:
    """The same pictures as micro-batches of 1 and of the rest."""
    return [
        replace(batch, pixels=batch.pixels[:1], seeds=batch.seeds[:1]),
        replace(batch, pixels=batch.pixels[1:], seeds=batch.seeds[1:]),
    ]


def test_without_noise_it_is_the_plain_loss() -> None:
    stage, batch = TokenizerStage(SMALL, gamma=0.0), pictures()
    model = stage.trainee(network())
    network_ = model.autoencoder
    output = network_.decoder(normalise_latents(network_.mean(batch.pixels)))
    error = output - batch.pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    expected = error.abs().mean() + error.square().mean() + edges
    assert torch.isclose(total(stage, model, [batch]), expected)
    assert set(stage.loss_weights) == {"l1", "l2", "gradient"}


def test_sums_do_not_depend_on_how_pictures_are_dealt_out(features: FeatureNet) -> None:
    stage = TokenizerStage(SAMPLED, weights=ALL, features=features)
    model = stage.trainee(network(SAMPLED), (8, 8))
    grads = []
    for batches in ([pictures()], parts_of(pictures())):
        model.zero_grad()
        loss = total(stage, model, batches)
        loss.backward()
        grads.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.isclose(grads[0][0], grads[1][0], rtol=1e-5)
    for one, other in zip(grads[0][1], grads[1][1], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_weights_that_lie_channels_last_learn_the_same() -> None:
    stage = TokenizerStage(SAMPLED)
    plain = TokenizerModel(network(SAMPLED))
    ours = stage.trainee(network(SAMPLED))
    losses = [total(stage, model, [pictures()]) for model in (plain, ours)]
    assert torch.isclose(*losses, rtol=1e-6)
    torch.stack(losses).sum().backward()
    weights = dict(plain.named_parameters())
    for name, weight in ours.named_parameters():
        if weight.ndim == 4:
            assert weight.is_contiguous(memory_format=torch.channels_last), name
        # AdamW's fused loop walks through both as they lie in memory.
        assert weight.grad.stride() == weight.stride(), name
        assert torch.allclose(weight.grad, weights[name].grad, rtol=1e-3, atol=1e-5), name


def test_noise_belongs_to_the_picture() -> None:
    stage, batch = TokenizerStage(SAMPLED, gamma=0.7), pictures()
    whole = stage.prepare(batch, "cpu")
    torch.manual_seed(99)  # no global state
    first, rest = (stage.prepare(part, "cpu") for part in parts_of(batch))
    for name in ("level", "noise", "sample"):
        joined = torch.cat((getattr(first, name), getattr(rest, name)))
        assert torch.equal(getattr(whole, name), joined)
    assert whole.noise.shape == (4, 4, 8, 8)
    assert 0 <= float(whole.level.min()) < float(whole.level.max()) <= 0.7
    assert not torch.equal(whole.noise[0], whole.noise[1])
    assert TokenizerStage(SMALL).prepare(batch, "cpu").sample is None
    many = stage.prepare(PictureBatch(torch.zeros(300, 3, 2, 2), tuple(range(300))), "cpu")
    assert 0.32 < float(many.level.mean()) < 0.38  # uniform over 0 to 0.7
    assert float(many.level.min()) < 0.02 and float(many.level.max()) > 0.68
    assert 0.9 < float(many.noise.std()) < 1.1


def test_refinement_moves_the_decoder_alone() -> None:
    stage = TokenizerStage(SMALL, decoder_only=True)
    model = stage.trainee(network().requires_grad_(False))
    before = copy.deepcopy(model.autoencoder.encoder.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.autoencoder.decoder.parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    first = float(total(stage, model, [pictures()]).detach())
    for _ in range(10):
        optimizer.zero_grad()
        loss = total(stage, model, [pictures()])
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.9 * first
    assert all(p.grad is None for p in model.autoencoder.encoder.parameters())
    for name, value in model.autoencoder.encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_each_adversarial_part_trains_one_side() -> None:
    torch.manual_seed(0)
    critic, output = Critic((8, 16)), torch.rand(2, 3, 32, 32, requires_grad=True)
    adversarial_loss(critic, output).sum().backward()
    assert bool(output.grad.any())
    assert all(p.grad is None for p in critic.parameters())
    output.grad = None
    values = critic_loss(critic, output, torch.rand(2, 3, 32, 32))
    assert values.shape == (2,)
    values.sum().backward()
    assert output.grad is None
    assert all(bool(p.grad.any()) for p in list(critic.parameters())[:-1])  # see below


def test_one_step_trains_autoencoder_and_critic() -> None:
    stage = TokenizerStage(SMALL, weights={"l1": 1.0, "adversarial": 0.3}, adversarial_from=2)
    assert stage.loss_weights == {"l1": 1.0, "adversarial": 0.3, "critic": 1.0}
    model = stage.trainee(network(), (8, 16))
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    total(stage, model, [pictures()]).backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    still = [n for n, value in model.state_dict().items() if torch.equal(value, start[n])]
    assert still == ["critic.layers.5.bias"]  # both halves of the hinge pull it alike at first
    # Before its time the critic learns, but the autoencoder does not listen to it.
    alone = TokenizerStage(SMALL, weights={"l1": 1.0})
    model.load_state_dict(start)
    model.zero_grad()
    total(alone, model, [pictures()]).backward()
    for name, parameter in model.autoencoder.named_parameters():
        assert torch.allclose(parameter.grad, plain[f"autoencoder.{name}"], atol=1e-7)
    model.zero_grad()
    total(stage, model, [replace(pictures(), step=2)]).backward()
    moved = [n for n, p in model.autoencoder.named_parameters()
             if not torch.allclose(p.grad, plain[f"autoencoder.{n}"], atol=1e-7)]  # fmt: skip
    assert moved
    for name, parameter in model.critic.named_parameters():
        assert torch.allclose(parameter.grad, plain[f"critic.{name}"], atol=1e-7)


def test_the_critic_learns_to_tell() -> None:
    torch.manual_seed(0)
    critic = Critic((8, 16))
    real, made = torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16).round()
    optimizer = torch.optim.AdamW(critic.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        critic_loss(critic, made, real).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(critic(real).mean()) > 0.5 > -0.5 > float(critic(made).mean())
    # Its verdict on a picture does not depend on the others.
    assert torch.allclose(critic(real)[:1], critic(real[:1]), atol=1e-5)


def test_perceptual_part_reaches_the_autoencoder_and_not_its_own_network(
    features: FeatureNet,
) -> None:
    stage = TokenizerStage(SMALL, weights={"perceptual": 1.0}, features=features)
    before = copy.deepcopy(features.state_dict())
    model = stage.trainee(network())
    assert not any("features" in name for name, _ in model.named_parameters())
    total(stage, model, [pictures()]).backward()
    assert all(bool(p.grad.any()) for p in model.autoencoder.decoder.parameters())
    assert all(torch.equal(v, before[n]) for n, v in features.state_dict().items())


def test_kl_is_that_of_the_normal_distributions() -> None:
    stage = TokenizerStage(replace(SAMPLED, token_norm=False), weights={"l1": 1.0, "kl": 1.0})
    model = stage.trainee(network(replace(SAMPLED, token_norm=False)))
    batch = stage.prepare(pictures(), "cpu")
    _, mean, logvar = model(batch)
    ours = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(ours, normal).mean((1, 2, 3)).sum()
    assert torch.isclose(stage.losses(model, batch)["kl"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": {"lpips": 1.0}}, "unknown part 'lpips'"),
        ({"weights": {"l1": -1.0}}, "must not be negative"),
        ({"weights": {"gradient": 1.0}}, "one of l1, l2 and perceptual"),
        ({"weights": {"l1": 1.0, "kl": 1.0}}, "not deterministic"),
        ({"gamma": float("nan")}, "gamma must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TokenizerStage(SMALL, **given)
    with pytest.raises(ValueError, match="multiples of 8"):
        Critic((8, 12))


def test_reconstruction_parts() -> None:
    target = torch.zeros(2, 3, 4, 4)
    shifted = torch.cat((target[:1] + 0.5, target[1:]))
    parts = reconstruction_parts(shifted, target)
    assert parts["l1"].tolist() == [0.5, 0.0]
    assert parts["l2"].tolist() == [0.25, 0.0]
    assert parts["gradient"].tolist() == [0.0, 0.0]  # a constant offset has no edge
    edge = target.clone()
    edge[..., 2:] = 1.0
    assert torch.allclose(reconstruction_parts(edge, target)["gradient"], torch.tensor(1 / 3))


def test_operations_are_those_of_all_networks(features: FeatureNet) -> None:
    def count(stage: TokenizerStage, batch: PictureBatch) -> float:
        return stage.flops(stage.prepare(batch, "cpu"))

    plain, refined = TokenizerStage(SMALL), TokenizerStage(SMALL, decoder_only=True)
    seeing = TokenizerStage(SMALL, weights={"l1": 1.0, "perceptual": 1.0}, features=features)
    judged = TokenizerStage(SMALL, weights={"l1": 1.0, "adversarial": 1.0})
    small, wide = count(judged, pictures()), None
    judged.trainee(network(), (64, 128, 512))
    wide = count(judged, pictures(2))
    assert count(refined, pictures()) < count(plain, pictures()) < count(seeing, pictures())
    assert 2 * wide > small > count(plain, pictures())
    assert count(plain, pictures(8)) == 2 * count(plain, pictures(4))
    # One convolution over every pixel, with its two backward passes.
    bare = nn.Conv2d(3, 8, 3, padding=1)
    with FlopCounterMode(display=False) as counter:
        bare(torch.zeros(4, 3, 16, 16, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 16 * 16 * 3 * 9 * 8
