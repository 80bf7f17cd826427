"""E13 and E14: what the latent reaches, the null embedding, and guidance on every channel."""

import pytest
import torch
from test_unet import LEVELS, PLANES, randn, tiny

from minirodin.config import DiffusionConfig
from minirodin.diffusion import Diffusion
from minirodin.guidance import guided
from minirodin.unet import ResBlock

Z = randn(2, 6, seed=7)
ALL, NONE = torch.tensor([True, True]), torch.tensor([False, False])


def conditional(variant="aware"):
    return tiny(variant, latent=6)


@pytest.mark.parametrize("variant", ["baseline", "rollout", "aware"])
def test_only_a_kept_latent_counts(variant):
    net = conditional(variant)
    mixed = net(PLANES, LEVELS, Z, torch.tensor([True, False]))
    assert torch.equal(mixed[1], net(PLANES, LEVELS, Z.flip(0) + 1, NONE)[1])  # the null embedding, whatever z is
    torch.testing.assert_close(mixed[0], net(PLANES, LEVELS, Z, ALL)[0])
    for sample in range(2):
        change = net(PLANES, LEVELS, Z + 1, ALL)[sample] - net(PLANES, LEVELS, Z, ALL)[sample]
        assert change.abs().max() > 1e-2
    assert (net(PLANES, LEVELS, Z, ALL) - net(PLANES, LEVELS, Z, NONE)).abs().max() > 1e-2


def test_withheld_latents_train_the_null_embedding_alone():
    net = conditional()
    net(PLANES, LEVELS, Z, NONE).square().sum().backward()
    assert net.latent.null.grad.abs().sum() > 0
    assert all(p.grad is None or (p.grad == 0).all() for p in net.latent.project.parameters())
    net.zero_grad()
    net(PLANES, LEVELS, Z, ALL).square().sum().backward()
    assert net.latent.null.grad is None or (net.latent.null.grad == 0).all()
    assert all(p.grad.abs().sum() > 0 for p in net.latent.project.parameters())


def test_the_latent_modulates_every_residual_block():
    net, seen = conditional(), {}
    blocks = [m for m in net.modules() if isinstance(m, ResBlock)]
    for i, block in enumerate(blocks):
        block.modulation.register_forward_hook(lambda _, __, out, i=i: seen.setdefault(i, []).append(out))
    for z in (Z, Z + 1):
        net(PLANES, LEVELS, z, ALL)
    assert len(seen) == len(blocks) > 5
    assert all((a - b).abs().amax(1).min() > 1e-3 for a, b in seen.values())


def test_scales_one_and_zero_are_the_network_itself():
    net = conditional()
    assert torch.equal(guided(net, Z, 1.0)(PLANES, LEVELS), net(PLANES, LEVELS, Z, ALL))
    assert torch.equal(guided(net, Z, 0.0)(PLANES, LEVELS), net(PLANES, LEVELS, Z, NONE))


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0, -1.0])
def test_all_channels_are_guided_and_the_variance_stays_between(scale):
    net = conditional()
    with_z, without = net(PLANES, LEVELS, Z, ALL), net(PLANES, LEVELS, Z, NONE)
    out = guided(net, Z, scale)(PLANES, LEVELS)
    torch.testing.assert_close(out[:, 0], scale * with_z[:, 0] + (1 - scale) * without[:, 0], rtol=1e-4, atol=1e-4)
    moved = (out[:, 0] - with_z[:, 0]).abs().flatten(3).amax((0, 3))  # (3, C)
    assert (moved > 1e-4).all()
    low, high = torch.minimum(with_z[:, 1], without[:, 1]), torch.maximum(with_z[:, 1], without[:, 1])
    assert (out[:, 1] >= low - 1e-4).all() and (out[:, 1] <= high + 1e-4).all()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_of_any_prediction_is_guidance_of_the_noise(prediction):
    net, diffusion = conditional(), Diffusion(DiffusionConfig(prediction=prediction))
    answers = [diffusion.denoiser(guided(net, Z, scale))(PLANES, LEVELS).eps for scale in (0.0, 1.0, 2.5)]
    torch.testing.assert_close(answers[2], 2.5 * answers[1] - 1.5 * answers[0], rtol=1e-3, atol=1e-3)


def test_rescaling_brings_the_deviation_back():
    net = conditional()
    wanted = net(PLANES, LEVELS, Z, ALL)[:, 0].flatten(1).std(1)
    glaring, half, full = (guided(net, Z, 4.0, phi)(PLANES, LEVELS)[:, 0].flatten(1).std(1) for phi in (0, 0.5, 1))
    assert (glaring > 1.05 * wanted).all()
    torch.testing.assert_close(full, wanted)
    torch.testing.assert_close(half, (glaring + wanted) / 2)


def test_both_branches_run_in_one_batch():
    net, sizes = conditional(), []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for scale in (0.0, 1.0, 2.0):
        guided(net, Z, scale)(PLANES, LEVELS)
    assert sizes == [2, 2, 4]
