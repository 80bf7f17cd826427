"""How good a *set* of generated avatars is: near the data, as varied, not copied, nothing floating, planes that agree.

The first half takes vectors of any kind: features of rendered views (`perceptual.FeatureNetwork`; the network's name
goes with the number) or planes, flattened. The second half looks at tri-planes. Every number needs one to stand beside
it: the same measure of held-out real subjects in place of the generated ones.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from minirodin.decoder import TriplaneDecoder
from minirodin.errors import DataError
from minirodin.render import cell_centres
from minirodin.triplane import sample_planes

CHUNK = 256  # vectors a side of a block of distances


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), FID when the features are Inception's: (N, D), (M, D) → ≥ 0.

    No square root of a matrix is taken. With Σ_a = R_aᵀ R_a (R_a from the QR factors of the centred data) the
    eigenvalues of Σ_a Σ_b are the squared singular values of R_a R_bᵀ, so the last trace is their sum. That is exact
    in float64 also where N < D and both covariances are singular.

    Small samples are biased: two sets drawn alike are apart by about 2 tr Σ / N in their means, and by more in their
    covariances, most so where N < D. Compare values at equal N and M only, and state that of two real sets beside them.
    """
    (mean_a, root_a), (mean_b, root_b) = (_mean_and_root(x.double()) for x in (a, b))
    cross = torch.linalg.svdvals(root_a @ root_b.mT).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return float(distance.clamp(min=0))


def _mean_and_root(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R  # (D,), (min(N, D), D)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> dict[str, float]:
    """Quality and variety apart, by balls that reach from each vector of a set to its k-th nearest other one.

    Args:
        real, fake: (N, ...), (M, ...), more than k of each; compare values at equal N, M and k only.

    Returns:
        `precision`: share of fakes inside a ball of the reals (are they like data?), and `recall`: share of reals
        inside a ball of the fakes (is all data reached?), of Kynkäänniemi et al. 2019; `coverage`: share of the balls
        of reals that hold a fake (Naeem et al. 2020), which outliers among the fakes cannot raise. Sets drawn alike
        and of one size have a coverage of about 1 − 2⁻ᵏ, not 1.
    """
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled, covered = [], []
    for distances, radii in zip(_distances(real, fake), real_radii.split(CHUNK), strict=True):  # (n, M), (n,)
        inside = distances <= radii[:, None]
        precise |= inside.any(0)
        covered.append(inside.any(1))
        recalled.append((distances <= fake_radii).any(1))
    shares = {"precision": precise, "recall": torch.cat(recalled), "coverage": torch.cat(covered)}
    return {name: float(hits.double().mean()) for name, hits in shares.items()}


def nearest_neighbours(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of (M, ...) reals to each of (N, ...) fakes: float64 distances (N,) and indices (N,)."""
    blocks = [distances.min(1) for distances in _distances(fake, real)]
    return torch.cat([block.values for block in blocks]), torch.cat([block.indices for block in blocks])


def memorisation(fake: Tensor, real: Tensor) -> Tensor:
    """Distance of each fake to its nearest training vector ÷ the median of such distances among the training vectors.

    Returns:
        (N,): about 1 for new subjects like the data, far below 1 for a copy.
    """
    return nearest_neighbours(fake, real)[0] / _radii(real, 1).median()


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Euclidean distances in float64 as blocks of rows (n, M), n ≤ CHUNK, so that flattened planes fit in memory."""
    for rows in a.flatten(1).split(CHUNK):
        yield torch.cat([torch.cdist(rows.double(), columns.double()) for columns in b.flatten(1).split(CHUNK)], dim=1)


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each vector to its k-th nearest other one: (N, ...) → (N,)."""
    if len(x) <= k:
        raise DataError(f"{len(x)} samples have no {k} neighbours each: give more than {k}")
    radii = []
    for i, distances in enumerate(_distances(x, x)):
        distances.diagonal(i * CHUNK).fill_(torch.inf)  # itself
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


@torch.no_grad()
def free_space_density(
    planes: Tensor, decoder: TriplaneDecoder, grid: int = 64, threshold: float = 0.05
) -> dict[str, Tensor]:
    """Matter where none should be, from the opacities 1 − exp(−σ · 2/G) at the centres of G³ cells.

    Args:
        planes: (B, 3, C, R, R) on the decoder's scale.
        threshold: opacity from which a cell counts as matter.

    Returns:
        `floating` (B,): share of the opacity of all matter that is outside the body, which is the heaviest component
        (cells that touch at a corner are connected); 0 where there is no matter. `wall` (B,): mean opacity, thin haze
        and all, of the outer cells, 1/16 of the box's side deep, but for the floor, on which the bust stands.
    """
    centres = cell_centres(grid, planes.device)
    outward = torch.stack([centres[:, 0].abs(), centres[:, 1], centres[:, 2].abs()])  # (3, G³); y points up
    shell = (outward.amax(0) > 1 - 2 / 16).view(grid, grid, grid)
    floating, wall = [], []
    for subject in planes:
        parts = centres.split(1 << 17 if planes.is_cuda else 1 << 14)
        density = torch.cat([decoder.density(sample_planes(subject[None], part[None]))[0] for part in parts])
        opacity = -torch.expm1(-density * 2 / grid).view(grid, grid, grid)
        weights = opacity.double().cpu().numpy()
        labels, _ = ndimage.label(weights > threshold, np.ones((3, 3, 3)))
        mass = np.bincount(labels.ravel(), weights.ravel())[1:]  # of each component; label 0 is empty space
        floating.append(float(1 - mass.max() / mass.sum()) if len(mass) else 0.0)
        wall.append(float(opacity[shell].mean()))
    return {"floating": torch.tensor(floating), "wall": torch.tensor(wall)}


class PlaneDisagreement:
    """How far the planes of a subject contradict each other: 1 as little as data, the more the worse.

    The row axis of plane k is the column axis of plane k+1. Both are pooled over their other axis, as the 3D-aware
    convolution does, to a profile along the one they share, x_k = mean_columns y_k and z_k = mean_rows y_(k+1), each
    (C, R). A function of that axis alone could move from one plane to the other without changing the sum (E1); fitting
    starts all subjects alike and gives both planes the same gradient there, so z_k follows x_k, up to what a linear
    map learns from reference subjects. With their means taken off and channels scaled to equal variance,

        ẑ_k = x_k + x_k W_k,   disagreement = Σ ‖z_k − ẑ_k‖² / Σ ‖z_k‖²  ÷  the same of the reference,

    W_k by ridge regression, so few subjects leave the identity. The reference predicts every subject from the others
    only, in closed form, which also chooses the ridge. Dividing by ‖z_k‖² makes a set that is merely closer to the
    mean, or exaggerated by guidance, no better and no worse. What pooling averages out is not seen.
    """

    def fit(self, planes: Tensor) -> "PlaneDisagreement":
        """Learn from real planes (N, 3, C, R, R), N ≥ 3, at the size of those to be judged; returns itself."""
        if len(planes) < 3:
            raise DataError(f"{len(planes)} reference subjects: give 3 or more, a few hundred for a good reference")
        n, (c, r) = len(planes), planes.shape[2:4]
        x, z = shared_profiles(planes)
        self.means = torch.stack([x, z]).mean(2, keepdim=True)  # (2, 3, 1, C·R)
        centred = torch.stack([x, z]) - self.means
        std = centred.unflatten(-1, (c, r)).square().mean((0, 1, 2, 4)).sqrt()  # (C,)
        self.scale = std.clamp_min(1e-3 * std.max()).repeat_interleave(r)  # a channel that nothing uses stays silent
        self.x, z = centred / self.scale  # (3, N, C·R)
        rest = z - self.x
        # Ridge in its dual form, N × N: W = Xᵀ (X Xᵀ + λ)⁻¹ (Z − X), and 1/N more leverage for the means taken off.
        values, vectors = torch.linalg.eigh(self.x @ self.x.mT)  # (3, N), (3, N, N)
        best = torch.inf
        for ridge in 10.0 ** torch.arange(-4, 7):  # × the mean eigenvalue; the last leaves the identity
            inverse = vectors / (values + ridge * values.mean(1, keepdim=True))[:, None] @ vectors.mT
            hat = self.x @ self.x.mT @ inverse
            leverage = hat.diagonal(dim1=1, dim2=2)[..., None] + 1 / n  # (3, N, 1)
            error = ((rest - hat @ rest) / (1 - leverage)).square().sum()  # each subject left out
            if error < best:
                best, self.dual = error, inverse @ rest
        self.reference = best / (z * n / (n - 1)).square().sum()
        return self

    def __call__(self, planes: Tensor) -> float:
        """Of generated planes (B, 3, C, R, R), or real ones not fitted on."""
        x, z = (torch.stack(shared_profiles(planes)) - self.means) / self.scale
        residual = z - x - x @ self.x.mT @ self.dual
        return float(residual.square().sum() / z.square().sum() / self.reference)


def shared_profiles(planes: Tensor) -> tuple[Tensor, Tensor]:
    """What planes k and k+1 say of the axis they share: (B, 3, C, R, R) → x, z (3, B, C·R) float64."""
    rows = planes.mean(-1, dtype=torch.float64)  # (B, 3, C, R) along the rows of plane k
    columns = planes.mean(-2, dtype=torch.float64).roll(-1, dims=1)  # (B, 3, C, R) along the columns of plane k+1
    return tuple(profile.flatten(2).transpose(0, 1) for profile in (rows, columns))
