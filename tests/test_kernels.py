"""On a GPU: the Triton kernels against plain PyTorch, and a fit that is interrupted."""

import pytest
import torch
from toys import ball_capture

from minirodin.triplane import sample_planes_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: Triton kernels"),
]


@pytest.mark.parametrize("channels, resolution", [(8, 5), (16, 64), (32, 33)])
def test_kernel_equals_the_reference_with_gradients(channels, resolution):
    from minirodin.kernels import sample_planes_cuda

    generator = torch.Generator("cuda").manual_seed(0)
    planes = torch.randn(3, 3, channels, resolution, resolution, device="cuda", generator=generator)
    points = torch.rand(3, 1001, 3, device="cuda", generator=generator) * 2.4 - 1.2  # some outside the box
    weights = torch.randn(3, 1001, channels, device="cuda", generator=generator)
    results = []
    for sample in (sample_planes_reference, sample_planes_cuda):
        leaf = planes.clone().requires_grad_()
        out = sample(leaf, points)
        (out * weights).sum().backward()
        results.append((out.detach(), leaf.grad))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("channels, out, resolution", [(16, 32, 64), (24, 40, 33), (5, 7, 2)])
def test_aware_convolution_equals_the_naive_form_with_gradients(
    channels, out, resolution, dtype, tolerance, compiled, monkeypatch
):
    """Against float64; relative to the largest value, since sums over a line are long."""
    from minirodin.conv import aware_conv, aware_conv_naive

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((6, channels, resolution, resolution), (out, 3 * channels, 3, 3), (out,))
    given = [torch.randn(shape, device="cuda", generator=generator) for shape in shapes]
    weights = torch.randn(6, out, resolution, resolution, device="cuda", generator=generator)
    torch._dynamo.reset()
    fast = torch.compile(aware_conv) if compiled else aware_conv
    results = []
    for conv, kind in ((aware_conv_naive, torch.float64), (fast, dtype)):
        leaves = [value.to(dtype).to(kind).requires_grad_() for value in given]
        y = conv(leaves[0].contiguous(memory_format=torch.channels_last), *leaves[1:])
        gradients = torch.autograd.grad(y, leaves, weights.to(dtype).to(kind))
        results.append([y.detach().double(), *(g.double() for g in gradients)])
    for ours, expected in zip(results[1], results[0], strict=True):
        assert (ours - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("channels, resolution", [(24, 5), (96, 33), (320, 64)])
def test_group_norm_equals_pytorchs_with_gradients(channels, resolution, adaptive, act, dtype, tolerance):
    """Against float64."""
    from minirodin.unet import GroupNorm

    generator = torch.Generator("cuda").manual_seed(0)
    shapes = (3, channels, resolution, resolution), (3, channels), (3, channels), (channels,), (channels,)
    given = [torch.randn(shape, device="cuda", generator=generator) for shape in shapes]
    given[0] = 1 + 2 * given[0]
    weights = torch.randn(shapes[0], device="cuda", generator=generator).to(dtype)
    results = []
    for kind in (torch.float64, dtype):
        norm = GroupNorm(channels, act).to("cuda", torch.float64 if kind == torch.float64 else torch.float32)
        x = given[0].to(dtype).to(kind).contiguous(memory_format=torch.channels_last).requires_grad_()
        scale, shift, weight, bias = (value.to(norm.weight.dtype).requires_grad_() for value in given[1:])
        parameters = {"weight": weight, "bias": bias}
        y = torch.func.functional_call(norm, parameters, (x, scale, shift) if adaptive else (x,))
        leaves = [x, weight, bias, *((scale, shift) if adaptive else ())]
        gradients = torch.autograd.grad(y, leaves, weights.to(kind))
        results.append([y.detach().double(), *(g.double() for g in gradients)])
    for ours, expected in zip(results[1], results[0], strict=True):
        assert (ours - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_replayed_is_training_launched(tmp_path, accumulate):
    from minirodin.config import TrainConfig, preset
    from minirodin.diffusion import Diffusion
    from minirodin.training import Trainer
    from minirodin.unet import UNet

    data = torch.randn(16, 3, 8, 32, 32, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    config = preset("smoke").base
    logs = []
    for graph in (False, True):
        torch.manual_seed(0)
        network = UNet(config.unet, 8, 32)
        schedule = TrainConfig(steps=20, batch=8, accumulate=accumulate, warmup=2, lr=2e-3, log_every=1, graph=graph)

        def batches(number, generator):
            return data[torch.randint(16, (number,), device="cuda", generator=generator)]

        trainer = Trainer(
            network, Diffusion(config.diffusion).losses, batches, schedule, tmp_path / str(graph), {"kind": "toy"}
        )
        trainer.run(show_progress=False)
        logs.append([[row[key] for key in ("simple", "grad_norm")] for row in trainer.rows])
    launched, replayed = torch.tensor(logs)
    torch.testing.assert_close(replayed, launched, rtol=0.02, atol=1e-3)
    assert launched[-5:, 0].mean() < launched[:5, 0].mean()


def test_a_fit_on_the_gpu_goes_on_from_its_checkpoint():
    from minirodin.config import preset
    from minirodin.decoder import TriplaneDecoder
    from minirodin.fitting import Fitter
    from minirodin.observations import Observations

    config = preset("smoke")
    captures = [ball_capture(f"ball{i}", views=6, size=32, seed=i) for i in range(2)]

    def fitter() -> Fitter:
        torch.manual_seed(0)
        decoder = TriplaneDecoder(config.triplane.channels, config.decoder).to("cuda")
        observations = Observations(captures, config.render.grid, torch.device("cuda"))
        return Fitter([c.name for c in captures], observations, config, decoder, learn_decoder=True)

    whole, part, rest = fitter(), fitter(), fitter()
    for _ in range(12):
        whole.advance()
    for _ in range(6):
        part.advance()
    rest.load_state({key: value.cpu() for key, value in part.state().items()})
    for _ in range(6):
        rest.advance()
    for name, planes in whole.planes().items():  # atomics add in any order
        torch.testing.assert_close(rest.planes()[name], planes, rtol=0.02, atol=2e-3)
