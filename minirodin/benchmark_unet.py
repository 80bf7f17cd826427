"""What the diffusion networks cost: 3D-aware convolution against its naive form, U-Net training against the chip."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minirodin import conv
from minirodin.config import Config
from minirodin.conv import AwareConv2d
from minirodin.decoder import TriplaneDecoder
from minirodin.diffusion import Diffusion
from minirodin.patches import Views
from minirodin.perceptual import PerceptualDistance
from minirodin.picture_losses import PictureLosses
from minirodin.plane_space import PlaneSpace
from minirodin.shards import SharedDecoder
from minirodin.triplane import plane_statistics, resize_planes
from minirodin.unet import VARIANTS, UNet
from minirodin.upsampler import Upsampler, build_network, detail_space
from minirodin.upsampler_training import upsampler_losses

SHAPES = ((16, 192, 64), (4, 64, 256))  # (B, C, R): three planes of R² for each sample


@contextmanager
def naive_convolution() -> Iterator[None]:
    """Within it every `AwareConv2d` pools, expands, concatenates and convolves."""
    fast, conv.aware_conv = conv.aware_conv, conv.aware_conv_naive
    try:
        yield
    finally:
        conv.aware_conv = fast


def seconds(run: Callable[[], object], repeats: int, together: int = 10) -> float:
    """Median time of a call, over `repeats` groups of `together` calls in a row, after one group to warm up.

    On a GPU calls in a row overlap with their own launching, as steps of training do.
    """
    times = []
    for _ in range(repeats + 1):
        _wait()
        start = time.perf_counter()
        for _ in range(together):
            run()
        _wait()
        times.append((time.perf_counter() - start) / together)
    return sorted(times[1:])[repeats // 2]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(size: int = 8192) -> float:
    """FLOP/s of a square bf16 matrix product on random data, this machine's ceiling."""
    device = _device()
    size = size if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, 5)


def replayed(step: Callable[[], object]) -> Callable[[], object]:
    """The kernels of a call as one CUDA graph: their time without that of launching them."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            step()
    _wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def bench_conv(repeats: int = 7) -> dict:
    """Forward and backward of one 3×3 convolution C → C in bf16: plain, 3D-aware, and that as the paper words it.

    Each eager and compiled, launched from Python and replayed as a CUDA graph; the ratios are of the quickest.
    """
    device, rows = _device(), []
    shapes = SHAPES if device.type == "cuda" else ((1, 16, 32),)
    for b, c, r in shapes:
        x = torch.randn(3 * b, c, r, r, device=device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        g = torch.randn_like(x)
        x.requires_grad_()
        row: dict = {"batch": b, "channels": c, "resolution": r}
        for name in ("plain", "aware", "naive"):
            layer = nn.Conv2d(c, c, 3, padding=1) if name == "plain" else AwareConv2d(c, c)
            layer = layer.to(device, torch.bfloat16, memory_format=torch.channels_last)

            def step(call: nn.Module = layer, layer: nn.Module = layer, x: Tensor = x, g: Tensor = g) -> object:
                return torch.autograd.grad(call(x), (x, *layer.parameters()), g)

            with naive_convolution() if name == "naive" else nullcontext():
                calls = {"eager": step}
                if device.type == "cuda":
                    torch._dynamo.reset()
                    calls["compiled"] = partial(step, torch.compile(layer))
                    calls |= {f"{key}_replayed": replayed(call) for key, call in list(calls.items())}
                row[name] = {f"{key}_ms": 1e3 * seconds(call, repeats) for key, call in calls.items()}
        best = {name: min(row[name].values()) for name in ("plain", "aware", "naive")}
        row["over_plain"], row["naive_over_aware"] = best["aware"] / best["plain"], best["naive"] / best["aware"]
        rows.append(row)
    return {"shapes": rows}


def bench_unet(config: Config, batch: int = 64, repeats: int = 3) -> dict:
    """One training step (forward, losses, backward, fused AdamW) of each variant, and of `aware` with the naive form.

    Model FLOPs are those of every matrix product and convolution of the forward pass as `FlopCounterMode` counts them,
    times three for forward and backward, the aware convolution in its fast form; the optimiser counts for nothing. On a
    GPU the network runs as in training, in bf16 and replayed as CUDA graphs.
    """
    device = _device()
    t, gpu = config.triplane, device.type == "cuda"
    batch = batch if gpu else 2
    rate, diffusion = matrix_rate(), Diffusion(config.base.diffusion)
    results: dict = {"batch": batch, "matrix_rate": rate, "variants": {}}
    for name in (*VARIANTS, "aware-naive"):
        base = config.base.of_variant(name.removesuffix("-naive"))
        network = UNet(base.unet, t.channels, t.base_resolution, diffusion.outputs)
        parameters, flops = sum(p.numel() for p in network.parameters()), forward_flops(network)
        network = network.to(device, memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=gpu)
        x0 = torch.randn(batch, 3, t.channels, t.base_resolution, t.base_resolution, device=device)
        generator = torch.Generator(device).manual_seed(0)

        def step(network=network, optimiser=optimiser, x0=x0, generator=generator) -> None:
            diffusion.losses(network, x0, generator)["loss"].backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        with naive_convolution() if name == "aware-naive" else nullcontext():
            if gpu:
                torch.cuda.reset_peak_memory_stats()
                with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                    torch.cuda.make_graphed_callables(network, (x0, torch.zeros(batch, device=device)))
            took = seconds(step, repeats, together=10 if gpu else 1)
        results["variants"][name] = {
            "parameters": parameters,
            "forward_gflop": flops / 1e9,
            "samples_per_second": batch / took,
            "share_of_matrix_rate": 3 * flops * batch / took / rate,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        }
    return results


def bench_upsampler(config: Config, steps: int = 10, repeats: int = 3) -> dict:
    """Planes of an avatar at `steps` steps, one at a time, and training steps with the perceptual patch loss.

    Weights and planes are random, which costs the same; the decoder finds matter in every cell, which costs most.
    """
    device = _device()
    gpu, c, t = device.type == "cuda", config.upsampler, config.triplane
    decoder = TriplaneDecoder(t.channels, config.decoder)
    planes = 0.1 * torch.randn(c.train.batch if gpu else 2, 3, t.channels, t.resolution, t.resolution)
    small = resize_planes(planes, t.base_resolution)
    shared = SharedDecoder(decoder, config, small[0], *plane_statistics(small))
    low, detail = (PlaneSpace.of(p, None) for p in (small, planes))
    network = build_network(config)
    model = Upsampler(network, shared, config, low, detail_space(detail.weight)).to(device)
    planes, people = planes.to(device), torch.arange(len(planes), device=device)
    eyes = PerceptualDistance(c.perceptual or None)
    looks = PictureLosses(decoder, config.render, Views.around(c), eyes, c.perceptual_weight).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=gpu)
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        upsampler_losses(model, network, planes, people, looks, generator)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    sampling = seconds(lambda: model.upsample(small[:1], steps), repeats, together=1)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with torch.autocast(device.type, torch.bfloat16, enabled=gpu, cache_enabled=False):
        took = seconds(step, repeats, together=5 if gpu else 1)
    return {
        "batch": len(planes),
        "rendered": min(c.rendered, len(planes)),
        "perceptual": eyes.name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds_an_avatar": sampling,
        "steps": steps,
        "training_steps_per_second": 1 / took,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    }


def forward_flops(network: UNet) -> float:
    """Floating-point operations of one sample's forward pass, a multiply-add counted as two.

    A network that was built within `FakeTensorMode` does: nothing but shapes is looked at.
    """
    maps, levels = len(network.plane_embedding), network.embed[0].in_features // network.config.channels[0]
    with _fake_mode(network), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        planes = torch.empty(1, 3, network.enter.in_channels * maps // 3, network.resolution, network.resolution)
        z, keep = torch.empty(1, network.config.latent), torch.empty(1, dtype=torch.bool)
        network(planes, torch.empty(1, levels), *((z, keep) if network.config.latent else ()))
    return counter.get_total_flops()


def _fake_mode(network: UNet) -> FakeTensorMode:
    weight = network.enter.weight
    return weight.fake_mode if isinstance(weight, FakeTensor) else FakeTensorMode(allow_non_fake_inputs=True)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
