"""An adversary for the refiner (E20), off by default: a critic of patches, which learns to tell refined ones from true.

Both learn in the same step, from one loss: what the refiner is told goes through weights of the critic that stand
still, and what the critic is told stops at the picture.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

STEADY = 1.0  # γ of the penalty


class Critic(nn.Module):
    """Three convolutions that halve the side, then one number for each place: larger where it looks true."""

    def __init__(self, channels: int = 32):
        super().__init__()
        sizes = (3, channels, 2 * channels, 4 * channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(sizes))
        self.last = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)  # (B, C, h, w)
        return self.last(x)  # (B, 1, H/8, W/8)


def adversarial_losses(critic: Critic, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """The non-saturating game (Goodfellow et al. 2014) with the penalty R₁ on true pictures (Mescheder et al. 2018).

        refiner: E softplus(−D(x̂)),    critic: E softplus(−D(x)) + E softplus(D(x̂)) + γ/2 E ‖∇ₓ D(x)‖² / places

    Args:
        made, true: (B, 3, H, W).

    Returns:
        What the refiner shall lower, and what the critic shall; the gradient of each reaches the other not at all.
    """
    still = {name: p.detach() for name, p in critic.named_parameters()}
    fooling = F.softplus(-functional_call(critic, still, (made,))).mean()
    with torch.enable_grad():  # for the penalty, also where nothing else is to be differentiated
        true = true.detach().requires_grad_()
        seen = critic(true)  # (B, 1, h, w)
        slope = torch.autograd.grad(seen.sum(), true, create_graph=True)[0]
        penalty = slope.square().sum((1, 2, 3)).mean() / seen[0].numel()
        telling = F.softplus(-seen).mean() + F.softplus(critic(made.detach())).mean() + STEADY / 2 * penalty
    return fooling, telling
