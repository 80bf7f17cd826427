"""The Triton look-up against the plain PyTorch one, forward and backward."""

import pytest
import torch

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
