"""The shared decoder (E2): ranges, the Fourier features of features, and what colour and density may depend on."""

import math

import pytest
import torch

from minirodin.config import DecoderConfig
from minirodin.decoder import TriplaneDecoder, fourier_features


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = TriplaneDecoder(6, DecoderConfig(hidden=32))
    torch.nn.init.constant_(decoder.density_head.bias, 0.0)
    return decoder


def features(n=500, c=6, scale=1.0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(1)) * scale


def directions(n=500, seed=2):
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_fourier_features_against_the_formula():
    x = features(20, 3, 0.7)
    out = fourier_features(x, 3)
    assert out.shape == (20, 18)
    waves = [wave(2**i * math.pi / 2 * x) for wave in (torch.sin, torch.cos) for i in range(3)]
    torch.testing.assert_close(out, torch.cat(waves, -1))
    assert fourier_features(x, 0).shape == (20, 0)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e6])
def test_ranges(decoder, scale):
    density, rgb = decoder(features(scale=scale), directions())
    assert density.shape == (500,) and rgb.shape == (500, 3)
    assert (density >= 0).all() and density.isfinite().all()
    assert (rgb >= 0).all() and (rgb <= 1).all()


def test_colour_sees_the_direction_and_density_does_not(decoder):
    density_a, rgb_a = decoder(features(), directions(seed=2))
    density_b, rgb_b = decoder(features(), directions(seed=3))
    assert torch.equal(density_a, density_b)
    assert ((rgb_a - rgb_b).abs().amax(-1) > 1e-4).float().mean() > 0.95


def test_density_alone_is_the_density_of_both(decoder):
    torch.testing.assert_close(decoder.density(features()), decoder(features(), directions())[0])


def test_same_feature_same_answer_wherever_it_stands(decoder):
    """Nothing but the feature and the direction goes in: order, neighbours and batch shape change nothing."""
    f, d = features(), directions()
    density, rgb = decoder(f, d)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(4))
    shuffled = decoder(f[order].view(5, 20, 5, 6), d[order].view(5, 20, 5, 3))
    torch.testing.assert_close(shuffled[0].flatten(), density[order])
    torch.testing.assert_close(shuffled[1].view(500, 3), rgb[order])


def test_the_embedding_is_of_the_features(decoder):
    """Without its raw part the trunk still tells features apart; two that share every ξ are the same to it."""
    c, octaves = 6, decoder.config.feature_frequencies
    first = decoder.trunk[0]
    assert first.in_features == c * (1 + 2 * octaves)
    with torch.no_grad():
        first.weight[:, :c] = 0
    f = features(scale=0.5)
    assert (decoder.density(f) - decoder.density(f + 0.3)).abs().max() > 1e-3
    torch.testing.assert_close(decoder.density(f + 4.0), decoder.density(f), rtol=1e-4, atol=1e-4)  # sin, cos(πx/2)
    with torch.no_grad():
        first.weight[:, c:] = 0
    assert torch.equal(decoder.density(f), decoder.density(f + 0.3))


def test_every_channel_matters_to_both(decoder):
    f = features().requires_grad_()
    for out in decoder(f, directions()):
        (gradient,) = torch.autograd.grad(out.sum(), f, retain_graph=True)
        assert (gradient.abs().mean(0) > 1e-6).all()


def test_four_fully_connected_layers_from_feature_to_colour(decoder):
    linear = [m for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 2 + 1 + 2  # trunk, density, colour


def test_density_scale(decoder):
    torch.manual_seed(0)
    other = TriplaneDecoder(6, DecoderConfig(hidden=32, density_scale=10.0))
    torch.nn.init.constant_(other.density_head.bias, 0.0)
    torch.testing.assert_close(other.density(features()) * 5, decoder.density(features()))


def test_a_new_decoder_is_almost_transparent():
    torch.manual_seed(0)
    sigma = TriplaneDecoder(16).density(torch.zeros(1, 16))
    assert 0.1 < sigma < 20  # at 2 across the box, light still passes; at 0 nothing would learn
