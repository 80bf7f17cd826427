"""Pictures for notebooks and contact sheets, in one restrained style: few colours, readable labels, small files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minirodin.triplane import PLANE_NAMES

# Blue, orange, green, red, grey: apart from each other for every kind of colour vision (after Okabe and Ito 2008).
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777")
STYLE = {
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "image.interpolation": "nearest",
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
}


def to_array(image) -> np.ndarray:
    """Any picture as (H, W, 3) uint8: tensor or array, float in [0, 1] or uint8, grey, RGB or RGBA (over white)."""
    image = image.detach().float().cpu().numpy() if isinstance(image, Tensor) and image.is_floating_point() else image
    image = np.asarray(image)
    image = image / 255 if image.dtype == np.uint8 else image.astype(np.float64)
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return (np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1) * 255).round().astype(np.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """RGB or RGBA (H, W, C), float in [0, 1] or bytes, as a picture of as many channels."""
    image = (image * 255).round().byte() if image.is_floating_point() else image
    return Image.fromarray(image.cpu().numpy())


def show_images(
    images: Sequence, titles: Sequence[str] = (), columns: int | None = None, width: float = 9.0, title: str = ""
) -> Figure:
    """A grid of pictures with a title above each.

    Args:
        images: anything that `to_array` takes; sizes may differ.
        titles: one for each image, or none.
        columns: pictures a row, default up to 6.
        width: of the figure in inches (100 pixels each).
        title: above everything.
    """
    arrays = [to_array(image) for image in images]
    columns = columns or min(6, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    cell = width / columns
    height = rows * (cell * max(a.shape[0] / a.shape[1] for a in arrays) + (0.25 if len(titles) else 0.03))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height + (0.3 if title else 0)), squeeze=False)
        for i, axis in enumerate(axes.flat):
            axis.set_axis_off()
            if i < len(arrays):
                axis.imshow(arrays[i])
            if i < len(titles):
                axis.set_title(titles[i], fontsize=8, loc="center")
        if title:
            figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    plt.close(figure)  # the notebook shows what a cell returns; without this it would show it twice
    return figure


def show_curves(
    curves: dict[str, tuple], xlabel: str = "", ylabel: str = "", title: str = "", log_y: bool = False, width: float = 5
) -> Figure:
    """Lines that share their axes.

    Args:
        curves: label → (x, y); a single point is drawn as a marker.
        log_y: logarithmic ordinate.
        width: in inches; the height is 0.6 of it.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(width, 0.6 * width))
        for label, (x, y) in curves.items():
            axis.plot(x, y, label=label, marker="o" if len(np.atleast_1d(x)) < 12 else None, markersize=4)
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log_y else "linear")
        if len(curves) > 1:
            axis.legend()
    plt.close(figure)
    return figure


def photo(figure: Figure, quality: int = 72):
    """A figure as a JPEG for a notebook (an IPython `Image`): pictures of people take a fifth of what PNG needs."""
    from IPython.display import Image as Shown

    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": quality})
    plt.close(figure)
    return Shown(buffer.getvalue(), format="jpeg")


def save_curves(curves: dict[str, tuple], path: str | Path, **labels) -> None:
    """`show_curves` as a PNG file."""
    show_curves(curves, **labels).savefig(path)


def contact_sheet(images: Sequence, columns: int, path: str | Path | None = None, gap: int = 2) -> Image.Image:
    """Pictures of one size pasted side by side on white, pixel for pixel; written as PNG when `path` is given."""
    arrays = [to_array(image) for image in images]
    height, width = arrays[0].shape[:2]
    rows = math.ceil(len(arrays) / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, array in enumerate(arrays):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = array
    picture = Image.fromarray(sheet)
    if path is not None:
        picture.save(path)
    return picture


def planes_to_rgb(planes: Tensor, basis: Tensor | None = None) -> Tensor:
    """The first three principal components of the features as red, green and blue.

    Args:
        planes: (3, C, R, R) of one subject, or (B, 3, C, R, R): colours are then comparable between subjects.
        basis: other planes that the components are computed from, default the same.

    Returns:
        (..., 3, R, R, 3) in [0, 1], picture rows upwards as in the world: the row axis of a plane points up.
    """
    features = planes.float().movedim(-3, -1)  # (..., 3, R, R, C)
    reference = (planes if basis is None else basis).float().movedim(-3, -1).flatten(0, -2)  # (M, C)
    mean = reference.mean(0)
    centred = reference - mean
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :3]  # (C, 3), the largest first
    # A component's sign is arbitrary: point it to where its largest weight is positive, so that pictures repeat.
    components = components * components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    low, high = _percentiles(centred @ components)
    colours = (((features - mean) @ components - low) / (high - low).clamp_min(1e-8)).clamp(0, 1)
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[-1]))
    return colours.flip(-3)


def show_planes(planes: Tensor, title: str = "", basis: Tensor | None = None, width: float = 6.0) -> Figure:
    """The three planes of one subject (3, C, R, R) as pictures of their principal components."""
    return show_images(list(planes_to_rgb(planes.cpu(), basis)), PLANE_NAMES, columns=3, width=width, title=title)


def _percentiles(values: Tensor) -> tuple[Tensor, Tensor]:
    ordered = values.sort(0).values
    return ordered[int(0.01 * len(values))], ordered[int(0.99 * (len(values) - 1))]
