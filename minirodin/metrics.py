"""What is measured: PSNR, SSIM and perceptual distance of images, and how easily planes can be diffused."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minirodin.triplane import plane_statistics, resize_planes, standardise


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: (N, ...), (N, ...) → (N,); +inf for equal ones."""
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window, σ = 1.5 and 11 wide, K₁ = 0.01, K₂ = 0.03, no padding.

    Args:
        a, b: (N, C, H, W) in [0, 1], at least 11 pixels each way.

    Returns:
        (N,) means over pixels and channels, 1 for equal images.
    """
    n, c = a.shape[:2]
    x = torch.arange(-5, 6, device=a.device, dtype=a.dtype)
    window = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (window / window.sum()).view(1, 1, 11, 1)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image.flatten(0, 1)[:, None], window), window.transpose(2, 3)).view(n, c, -1)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.mean((1, 2))


def power_spectrum(planes: Tensor, resolution: int = 64) -> Tensor:
    """Energy a frequency of standardised planes, averaged over subjects and the three planes.

    Args:
        planes: (B, 3, C, R, R); brought to `resolution` first, where the base diffusion model works.

    Returns:
        S (C, r, r) in `fftfreq` order, scaled so that its mean is the variance, 1 a channel (Parseval).
    """
    planes = resize_planes(planes.float(), resolution)
    mean, std = plane_statistics(planes)
    planes = standardise(planes, mean, std.clamp_min(1e-8))  # a channel that nothing uses counts as silent
    return torch.fft.fft2(planes, norm="ortho").abs().square().mean((0, 1))


def spectral_share(planes: Tensor, resolution: int = 64) -> float:
    """Share of the energy (mean left out) above half the Nyquist frequency (radially): 0 smooth, 0.8 white noise."""
    spectrum = power_spectrum(planes, resolution)
    frequency = torch.fft.fftfreq(resolution, device=spectrum.device)
    high = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt() > 0.25
    energy = spectrum.sum(0)
    energy[0, 0] = 0
    return float(energy[high].sum() / energy.sum())


def wiener_eps_loss(planes: Tensor, resolution: int = 64, log_snr: float = 10.0) -> float:
    """L_simple (E7) of the best linear, shift-invariant denoiser of these planes: 0 easy, 0.5 white noise.

    With S(f) the power spectrum of the standardised planes and y_t = α y_0 + σ ε, the Wiener estimate of ε keeps
    σ / (α² S + σ²) of each frequency of y_t, which leaves the error E|ε − ε̂|² = α² S / (α² S + σ²) = sigmoid(λ + ln S)
    at log-SNR λ = ln α²/σ². E6 draws λ evenly from [−Λ, Λ], so the mean is the difference of two softplus,

        loss = mean_f [softplus(Λ + ln S) − softplus(−Λ + ln S)] / 2Λ.

    A network may do better (it sees where it is, other channels, and what is not Gaussian), so this bounds nothing; it
    ranks sets of planes by spectrum alone, without training, and reproducibly.
    """
    log_spectrum = power_spectrum(planes, resolution).double().clamp_min(1e-30).log()
    loss = F.softplus(log_spectrum + log_snr) - F.softplus(log_spectrum - log_snr)
    return float(loss.mean() / (2 * log_snr))


@torch.no_grad()
def image_metrics(image: Tensor, truth: Tensor, perceptual) -> dict[str, Tensor]:
    """PSNR, SSIM and a `PerceptualDistance` under its network's name, each (N,), of RGB (N, 3, H, W) in [0, 1]."""
    return {"psnr": psnr(image, truth), "ssim": ssim(image, truth), perceptual.name: perceptual(image, truth)}
