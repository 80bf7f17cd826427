"""The U-Net of the base diffusion model, for planes as channels (E12), side by side (E10), or 3D-aware (E11).

One network, three readings of the same tri-planes, by `UNetConfig.variant`:

    baseline   (B, 3C, R, R): the planes stacked as channels of one image, whose texels do not belong together.
    rollout    (B·3, C, R, R): planes processed independently by the same kernels. The paper lays them side by side,
               which is the same but for kernels that reach across the seams.
    aware      as rollout, and the higher resolutions convolve with `AwareConv2d`.

At the lower resolutions attention sees the tokens of all three planes together (in `baseline`: of the one image).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minirodin.config import UNetConfig
from minirodin.conv import AwareConv2d
from minirodin.errors import ConfigError

VARIANTS = ("baseline", "rollout", "aware")


def log_snr_embedding(log_snr: Tensor, width: int) -> Tensor:
    """Sines and cosines of λ with periods from 0.1 to 100, evenly spaced in their logarithm: (B,) → (B, width)."""
    exponents = torch.linspace(-1, 2, width // 2, device=log_snr.device)
    angles = log_snr.float()[:, None] * (2 * math.pi / 10**exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` in at most 32 groups, optionally adaptive (AdaGN), norm(x)·(1 + scale) + shift, then SiLU.

    Args:
        channels: C.
        act: whether SiLU follows.
    """

    def __init__(self, channels: int, act: bool = True):
        super().__init__(math.gcd(32, channels), channels)
        self.act = act

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x (N, C, R, R), scale and shift (N, C) → (N, C, R, R) of x's type."""
        if x.is_cuda and x.dtype != torch.float64:
            from minirodin.norm_kernels import AdaptiveGroupNorm

            plain = x.new_zeros(x.shape[:2], dtype=torch.float32)
            given = (plain, plain) if scale is None else (scale.float(), shift.float())
            return AdaptiveGroupNorm.apply(x, self.weight, self.bias, *given, self.num_groups, self.eps, self.act)
        y = super().forward(x.to(self.weight.dtype))
        if scale is not None:
            y = torch.addcmul(shift[..., None, None], y, 1 + scale[..., None, None])
        return (F.silu(y) if self.act else y).to(x.dtype)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all weights zero: a residual branch that starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def conv3(channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3×3 convolution, within the network without a bias: the norms' shifts do its work, at no cost."""
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=bias)


def doubled(x: Tensor) -> Tensor:
    """Every texel of (N, C, R, R) four times, (N, C, 2R, 2R); `F.interpolate` would go to float32 under autocast."""
    return repeat(x.permute(0, 2, 3, 1), "n h w c -> n (h i) (w j) c", i=2, j=2).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input; the second norm is adaptive (AdaGN).

    AdaGN: GroupNorm(h)·(1 + scale) + shift, with scale and shift linear in the embedding of the noise level.

    Args:
        channels, out_channels: in and out.
        embedding: width of the embedding.
        aware: whether the second convolution is 3D-aware.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, aware: bool, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(channels), GroupNorm(out_channels)
        self.conv1 = conv3(channels, out_channels)
        self.conv2 = zeroed((AwareConv2d if aware else conv3)(out_channels, out_channels, bias=False))
        self.modulation = zeroed(nn.Linear(embedding, 2 * out_channels))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, C, R, R) and embedding (N, E), N = B·3 or B → (N, D, R, R)."""
        h = self.conv1(self.norm1(x))  # (N, D, R, R)
        h = self.norm2(h, *self.modulation(F.silu(embedding)).chunk(2, dim=1))
        return self.skip(x) + self.conv2(self.dropout(h))


class PlaneAttention(nn.Module):
    """Self-attention over the tokens of all `planes` maps of a sample together."""

    def __init__(self, channels: int, planes: int, head_width: int):
        super().__init__()
        self.planes = planes
        self.heads = max(h for h in range(1, max(1, channels // head_width) + 1) if channels % h == 0)
        self.norm = GroupNorm(channels, act=False)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.project = zeroed(nn.Linear(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B·k, C, R, R) → the same, k = `planes`."""
        k, r = self.planes, x.shape[-1]
        tokens = rearrange(self.norm(x), "(b k) c h w -> b (k h w) c", k=k)  # (B, k·R², C)
        q, k_, v = rearrange(self.qkv(tokens), "b n (qkv heads c) -> qkv b heads n c", qkv=3, heads=self.heads)
        h = rearrange(F.scaled_dot_product_attention(q, k_, v), "b heads n c -> b n (heads c)")
        return x + rearrange(self.project(h), "b (k h w) c -> (b k) c h w", k=k, h=r)


class LatentEmbedding(nn.Module):
    """E13: what a latent z adds to the embedding that modulates every residual block; without z, the null embedding.

    Args:
        latent: width of z.
        embedding: E.
    """

    def __init__(self, latent: int, embedding: int):
        super().__init__()
        self.scale = latent**0.5  # z has unit norm: entries of unit size
        self.project = nn.Sequential(nn.Linear(latent, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.null = nn.Parameter(torch.zeros(embedding))

    def forward(self, latent: Tensor, keep: Tensor) -> Tensor:
        """z (B, Z) and keep (B,) bool → (B, E): of z where it is kept, else null (E14)."""
        return torch.where(keep[:, None], self.project(self.scale * latent), self.null)


class UNet(nn.Module):
    """What the base diffusion model learns: noisy planes and their noise level in, one or two numbers a value out.

    Args:
        config: widths, depth, variant.
        channels: C of the planes.
        resolution: R of the planes; must halve len(config.channels) − 1 times.
        outputs: numbers predicted for each value (2 with a learned variance, E8).
        given: channels of further planes beside the noisy ones (E17).
        levels: noise levels that it is told of, one of the noisy planes and one of those given.

    Raises:
        ConfigError: an unknown variant, or sizes that do not fit.

    Example:
        >>> net = UNet(preset("smoke").base.unet, channels=8, resolution=32)
        >>> net(torch.randn(2, 3, 8, 32, 32), torch.zeros(2)).shape
        torch.Size([2, 2, 3, 8, 32, 32])
    """

    def __init__(
        self, config: UNetConfig, channels: int, resolution: int, outputs: int = 2, given: int = 0, levels: int = 1
    ):
        super().__init__()
        if config.variant not in VARIANTS:
            raise ConfigError(f"unknown variant {config.variant!r}: choose from {', '.join(VARIANTS)}")
        if not config.channels or config.channels[0] % 2:
            raise ConfigError(f"unet.channels {config.channels} must begin with an even width")
        depth = len(config.channels)
        if resolution % 2 ** (depth - 1) or resolution >> (depth - 1) < 2:
            raise ConfigError(f"planes of {resolution}² cannot be halved {depth - 1} times: give fewer unet.channels")
        self.config, self.channels, self.resolution, self.outputs = config, channels, resolution, outputs
        stacked = config.variant == "baseline"
        maps = 1 if stacked else 3  # images a sample
        image = channels * (3 // maps)  # channels of each
        base, embedding = config.channels[0], 4 * config.channels[0]

        self.embed = nn.Sequential(nn.Linear(levels * base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.plane_embedding = nn.Parameter(torch.zeros(maps, embedding))  # kernels are shared: which plane is this?
        self.latent = LatentEmbedding(config.latent, embedding) if config.latent else None

        def block(c: int, d: int, level: int) -> nn.ModuleList:
            aware = config.variant == "aware" and level < config.aware_levels
            attends = resolution >> level in config.attention
            attention = PlaneAttention(d, maps, config.head_width) if attends else nn.Identity()
            return nn.ModuleList([ResBlock(c, d, embedding, aware, config.dropout), attention])

        self.enter = conv3(image + given * (3 // maps), base, bias=True)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = base, [base]
        for level, wide in enumerate(config.channels):
            blocks = nn.ModuleList()
            for _ in range(config.blocks):
                blocks.append(block(width, wide, level))
                width = wide
                skips.append(width)
            shrink = nn.Identity()
            if level < depth - 1:
                shrink = conv3(width, width, stride=2)
                skips.append(width)
            self.down.append(nn.ModuleList([blocks, shrink]))
        self.middle = nn.ModuleList([block(width, width, depth - 1), block(width, width, depth - 1)])
        for level, wide in reversed(list(enumerate(config.channels))):
            blocks = nn.ModuleList()
            for _ in range(config.blocks + 1):
                blocks.append(block(width + skips.pop(), wide, level))
                width = wide
            self.up.append(nn.ModuleList([blocks, conv3(width, width) if level else nn.Identity()]))
        self.exit = nn.Sequential(GroupNorm(width), zeroed(conv3(width, outputs * image, bias=True)))

    def forward(
        self, planes: Tensor, log_snr: Tensor, latent: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Predict from noisy planes (what, `diffusion.Diffusion` decides).

        Args:
            planes: (B, 3, C + given, R, R) noisy, standardised, and what is given with them.
            log_snr: (B,) λ of each sample, or (B, levels).
            latent, keep: z (B, Z), and which samples are to know theirs (B,) bool; for a network with `config.latent`.

        Returns:
            (B, outputs, 3, C, R, R).
        """
        b, maps = len(planes), len(self.plane_embedding)
        width = self.embed[0].in_features * b // log_snr.numel()
        embedding = self.embed(log_snr_embedding(log_snr.flatten(), width).view(b, -1))  # (B, E)
        if self.latent is not None:
            embedding = embedding + self.latent(latent, keep)
        embedding = (embedding[:, None] + self.plane_embedding).flatten(0, 1)  # (B·maps, E)

        x = rearrange(planes, "b (m k) c h w -> (b m) (k c) h w", m=maps)  # (B·3, C, R, R) or (B, 3C, R, R)
        x = self.enter(x.contiguous(memory_format=torch.channels_last))
        skips = [x]

        def run(res: ResBlock, attend: nn.Module, x: Tensor) -> Tensor:
            if self.config.checkpointing and torch.is_grad_enabled():
                return checkpoint(lambda x, e: attend(res(x, e)), x, embedding, use_reentrant=False)
            return attend(res(x, embedding))

        for i, (blocks, shrink) in enumerate(self.down):
            for res, attend in blocks:
                x = run(res, attend, x)
                skips.append(x)
            if i < len(self.down) - 1:
                x = shrink(x)
                skips.append(x)
        for res, attend in self.middle:
            x = run(res, attend, x)
        for i, (blocks, smooth) in enumerate(self.up):
            for res, attend in blocks:
                x = run(res, attend, torch.cat([x, skips.pop()], dim=1))
            x = smooth(doubled(x)) if i < len(self.up) - 1 else x
        return rearrange(self.exit(x), "(b m) (o k c) h w -> b o (m k) c h w", b=b, o=self.outputs, k=3 // maps)
