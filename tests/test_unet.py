"""The base U-Net (E10–E12): what each variant may mix, what it may not, and the sizes that the presets promise."""

import itertools
import math

import pytest
import torch
from torch import nn

from minirodin.benchmark_unet import forward_flops
from minirodin.config import PRESETS, UNetConfig, preset
from minirodin.conv import AwareConv2d
from minirodin.errors import ConfigError
from minirodin.unet import VARIANTS, GroupNorm, PlaneAttention, ResBlock, UNet, log_snr_embedding

EVERY = pytest.mark.parametrize("variant", VARIANTS)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module, seed=0):
    """Undo the zero initialisation: every parameter at random, scaled to keep values around 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 0.5 if parameter.dim() < 2 else (parameter[0].numel()) ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return module


def tiny(variant, outputs=2, **changes):
    """Two levels of 8² and 4², attention at 4², all parameters random."""
    settings = {"channels": (8, 12), "blocks": 1, "attention": (4,), "head_width": 4, "aware_levels": 1, **changes}
    return randomise(UNet(UNetConfig(variant=variant, **settings), channels=2, resolution=8, outputs=outputs))


PLANES, LEVELS = randn(2, 3, 2, 8, 8), torch.tensor([-1.5, 2.0])


def influence(net):
    """3 × 3: whether output plane i of the first sample depends on its input plane j; the second must not count."""
    table = []
    for plane in range(3):
        planes = PLANES.clone().requires_grad_()
        net(planes, LEVELS)[0, :, plane].sin().sum().backward()
        assert (planes.grad[1] == 0).all()
        table.append((planes.grad[0].flatten(1).abs().amax(1) > 0).tolist())
    return table


ALONE = [[True, False, False], [False, True, False], [False, False, True]]
MIXED = [[True] * 3] * 3

# -- norms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [8, 48, 64])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_group_norm_is_pytorchs(channels, dtype, tolerance):
    norm = randomise(GroupNorm(channels, act=False)).to(dtype)
    x = (3 + 2 * randn(2, channels, 6, 6)).to(dtype).requires_grad_()
    results = []
    for forward in (norm, super(GroupNorm, norm).forward):
        y = forward(x)
        gradients = torch.autograd.grad(y.sin().sum(), (x, *norm.parameters()))
        results.append([y, *gradients])
    for ours, reference in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


def test_adaptive_group_norm_scales_and_shifts_what_was_normalised():
    norm, x = randomise(GroupNorm(8, act=False)), randn(2, 8, 4, 4)
    scale, shift = randn(2, 8, seed=1), randn(2, 8, seed=2)
    expected = norm(x) * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(norm(x, scale, shift), expected)
    norm.act = True
    torch.testing.assert_close(norm(x, scale, shift), expected * expected.sigmoid())


# -- shapes and sizes ---------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("outputs", [1, 2])
def test_output_is_numbers_for_each_value(variant, outputs):
    out = tiny(variant, outputs)(PLANES, LEVELS)
    assert out.shape == (2, outputs, 3, 2, 8, 8) and out.dtype == torch.float32 and out.isfinite().all()


@EVERY
def test_which_channel_of_which_image_is_which_plane(variant):
    net, entered, left = tiny(variant), [], []
    net.enter.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    net.exit.register_forward_hook(lambda _, __, output: left.append(output))
    out = net(PLANES, LEVELS)
    for b, plane, c in itertools.product(range(2), range(3), range(2)):
        image, first = (b, 2 * plane) if variant == "baseline" else (3 * b + plane, 0)
        assert torch.equal(entered[0][image, first + c], PLANES[b, plane, c])
        for number in range(2):
            channel = number * len(left[0][0]) // 2 + first + c  # all first numbers, then all second ones
            assert torch.equal(out[b, number, plane, c], left[0][image, channel])


@EVERY
def test_output_is_zero_at_first(variant):
    torch.manual_seed(0)
    net = UNet(preset("smoke").base.of_variant(variant).unet, channels=2, resolution=32)
    assert (net(randn(2, 3, 2, 32, 32), LEVELS) == 0).all()


@EVERY
def test_every_weight_has_a_gradient(variant):
    net = tiny(variant)
    net(PLANES, LEVELS).square().sum().backward()
    weights = {name: p.grad for name, p in net.named_parameters() if p.dim() > 1}  # a norm may hide a bias
    assert [name for name, gradient in weights.items() if gradient is None or gradient.abs().max() < 1e-3] == []


def of_preset(name, variant):
    config = preset(name)
    with torch.device("meta"):
        return UNet(config.base.of_variant(variant).unet, config.triplane.channels, config.triplane.base_resolution)


@pytest.mark.parametrize("name", PRESETS)
def test_variants_are_of_equal_size(name):
    sizes = [sum(p.numel() for p in of_preset(name, variant).parameters()) for variant in VARIANTS]
    assert max(sizes) < 1.03 * min(sizes)


def test_full_is_of_the_published_shape():
    config, net = preset("full").base.unet, of_preset("full", "aware")
    assert config.channels == (192, 2 * 192, 3 * 192, 4 * 192)
    assert (config.blocks, config.attention, preset("full").triplane.base_resolution) == (3, (32, 16, 8), 64)
    kinds = [type(m) for m in net.modules()]
    assert kinds.count(ResBlock) == 4 * 3 + 2 + 4 * (3 + 1)
    assert kinds.count(PlaneAttention) == 3 * 3 + 2 + 3 * (3 + 1)  # all levels but the first
    assert kinds.count(AwareConv2d) == 2 * 3 + 2 * (3 + 1)  # one a block, at the two highest resolutions


@pytest.mark.parametrize("name", PRESETS)
def test_only_the_aware_variant_has_aware_convolutions(name):
    has = {v: any(isinstance(m, AwareConv2d) for m in of_preset(name, v).modules()) for v in VARIANTS}
    assert has == {"baseline": False, "rollout": False, "aware": True}


@pytest.mark.parametrize(
    "settings, resolution, words",
    [
        ({"variant": "awake"}, 8, "'awake'.*baseline, rollout, aware"),
        ({"channels": (8, 8, 8)}, 6, "6² cannot be halved 2 times"),
        ({"channels": (8, 8, 8, 8)}, 8, "8² cannot be halved 3 times"),  # down to one texel
        ({"channels": (9, 12)}, 8, "channels"),
        ({"channels": ()}, 8, "channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(settings, resolution, words):
    with pytest.raises(ConfigError, match=words) as error:
        UNet(UNetConfig(**settings), channels=2, resolution=resolution)
    assert "\n" not in str(error.value)


# -- what sees what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, attention, expected",
    [
        ("rollout", (), ALONE),
        ("rollout", (4,), MIXED),
        ("aware", (), MIXED),
        ("aware", (4,), MIXED),
        ("baseline", (), MIXED),
        ("baseline", (4,), MIXED),
    ],
)
def test_planes_see_each_other(variant, attention, expected):
    assert influence(tiny(variant, attention=attention)) == expected


def test_without_aware_levels_it_is_the_rollout():
    assert influence(tiny("aware", attention=(), aware_levels=0)) == ALONE


def turned(net, turn):
    net.plane_embedding.data = net.plane_embedding.data.roll(turn, 0)
    return net


@pytest.mark.parametrize("variant", ["rollout", "aware"])
@pytest.mark.parametrize("turn", [1, 2])
def test_permuting_the_axes_cyclically_permutes_the_output(variant, turn):
    net = tiny(variant)
    net.plane_embedding.data *= 4
    expected = net(PLANES, LEVELS).roll(turn, 2)
    got = turned(net, turn)(PLANES.roll(turn, 1), LEVELS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    wrong = turned(net, -turn)(PLANES.roll(turn, 1), LEVELS)  # planes are told apart by their embedding alone
    assert (wrong - expected).abs().max() > 0.1


@EVERY
def test_samples_do_not_mix(variant):
    net = tiny(variant)
    together = net(PLANES, LEVELS)
    for i in range(2):
        torch.testing.assert_close(together[i], net(PLANES[i, None], LEVELS[i, None])[0], rtol=1e-4, atol=1e-4)
    assert (net(PLANES, LEVELS.flip(0)) - together).abs().amax((1, 2, 3, 4, 5)).min() > 0.01  # λ matters


@EVERY
def test_memory_layout_does_not_matter(variant):
    net = tiny(variant)
    strided = PLANES.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(net(strided, LEVELS), net(PLANES, LEVELS), rtol=1e-4, atol=1e-4)


@EVERY
def test_details_pass_by_the_lower_resolutions(variant):
    net, planes = tiny(variant), PLANES.clone().requires_grad_()
    for parameter in net.up[0][1].parameters():  # what comes up from 4²
        parameter.data.zero_()
    net(planes, LEVELS).sin().sum().backward()
    assert (planes.grad != 0).all()


# -- the parts ----------------------------------------------------------------------------------------------------


def test_embedding_has_periods_from_a_tenth_to_a_hundred():
    levels = torch.tensor([0.0, -3.21, 7.5])
    embedding = log_snr_embedding(levels, 8)
    for i, period in enumerate([0.1, 1.0, 10.0, 100.0]):
        for value, row in zip(levels.tolist(), embedding, strict=True):
            angle = 2 * math.pi * value / period
            assert row[[i, 4 + i]].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-4)


def test_blocks_do_nothing_at_first():
    torch.manual_seed(0)
    x, embedding = randn(6, 8, 4, 4), randn(6, 5)
    for aware in (True, False):
        block = ResBlock(8, 8, 5, aware, dropout=0.0)
        assert torch.equal(block(x, embedding), x) and (block.modulation(embedding) == 0).all()
    assert torch.equal(PlaneAttention(8, 3, head_width=4)(x), x)


def test_adaptive_norm_scales_and_shifts():
    block, x, embedding = randomise(ResBlock(4, 6, 5, aware=False, dropout=0.0)), randn(3, 4, 4, 4), randn(3, 5)
    scale, shift = block.modulation(nn.functional.silu(embedding)).chunk(2, dim=1)
    block.norm2.act = False
    h = block.norm2(block.conv1(block.norm1(x)))
    block.norm2.act = True
    h = torch.stack([h[i] * (1 + scale[i, :, None, None]) + shift[i, :, None, None] for i in range(3)])
    torch.testing.assert_close(block(x, embedding), block.skip(x) + block.conv2(nn.functional.silu(h)))


def slow_attention(attention, x):
    """One query at a time over the tokens of all maps of a sample: (k, C, R, R) → the same."""
    k, c, r, _ = x.shape
    maps = attention.norm(x)
    tokens = torch.stack([maps[m, :, i, j] for m in range(k) for i in range(r) for j in range(r)])
    q, key, v = attention.qkv(tokens).view(len(tokens), 3, attention.heads, -1).unbind(1)  # (n, heads, c) each
    out = []
    for n in range(len(tokens)):
        weights = torch.stack([(key[:, h] @ q[n, h] / q.shape[-1] ** 0.5).softmax(0) for h in range(attention.heads)])
        out.append(torch.cat([weights[h] @ v[:, h] for h in range(attention.heads)]))
    return x + attention.project(torch.stack(out)).view(k, r, r, c).permute(0, 3, 1, 2)


@pytest.mark.parametrize("planes", [1, 3])
def test_attention_against_a_loop(planes):
    attention, x = randomise(PlaneAttention(8, planes, head_width=4)), randn(2 * planes, 8, 3, 3)
    assert attention.heads == 2
    expected = torch.cat([slow_attention(attention, x[i * planes : (i + 1) * planes]) for i in range(2)])
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_a_token_sees_every_token_of_the_three_planes():
    attention, x = randomise(PlaneAttention(8, 3, head_width=4)), randn(6, 8, 4, 4).requires_grad_()
    attention(x)[1, :, 2, 3].sum().backward()
    assert (x.grad[:3].abs().amax(1) > 0).all() and (x.grad[3:] == 0).all()


@pytest.mark.parametrize("channels, head_width, heads", [(256, 64, 4), (208, 64, 2), (8, 64, 1), (9, 2, 3)])
def test_heads_divide_the_channels(channels, head_width, heads):
    assert PlaneAttention(channels, 3, head_width).heads == heads


# -- what it costs ------------------------------------------------------------------------------------------------


def products_by_hand(net):
    """Operations of one sample's convolutions, linear layers and attention, from the shapes that pass through them."""
    seen = []

    def count(layer, inputs, output):
        if isinstance(layer, PlaneAttention):
            _, c, r, _ = output.shape
            seen.append(2 * 2 * (layer.planes * r * r) ** 2 * c)  # q·k and weights·v
        else:
            seen.append(2 * output.numel() * layer.weight[0].numel())

    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, PlaneAttention)):
            layer.register_forward_hook(count)
    net(PLANES[:1], LEVELS[:1])
    return sum(seen)


@pytest.mark.parametrize("variant", ["baseline", "rollout"])
def test_operations_are_counted_as_by_hand(variant):
    assert forward_flops(tiny(variant)) == products_by_hand(tiny(variant))


def test_the_aware_network_costs_less_than_convolving_three_times_the_channels():
    counted, naive = forward_flops(tiny("aware")), products_by_hand(tiny("aware"))
    assert 0 < counted < naive
