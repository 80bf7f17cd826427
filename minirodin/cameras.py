"""Cameras, rays, and captures: a folder of images with `transforms.json`, in and out.

Convention (one everywhere): OpenGL / NeRF-Blender camera-to-world matrices (x right, y up, looks along −z) in a
right-handed world with y up, the subject inside the box [−1, 1]³ and its face along +z. Pixel (0, 0) is the top-left
one and pixel centres lie at half-integers.
"""

import json
import math
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minirodin.errors import DataError

RADIUS, FOV = 3.5, 0.6  # the project's own views: the box just fits (3.5·tan 0.3 = 1.08)
MAX_PIXELS = 64_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ours is the stricter limit


@dataclass(frozen=True)
class Cameras:
    """N pinhole cameras that share an image size.

    Attributes:
        camera_to_world: (N, 4, 4) float64, rigid.
        intrinsics: (N, 4) float64, `fx, fy, cx, cy` in pixels.
        width, height: image size in pixels.
    """

    camera_to_world: Tensor
    intrinsics: Tensor
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.camera_to_world)

    def __getitem__(self, index) -> "Cameras":
        """The cameras of an index, slice or list, always as `Cameras`."""
        if not isinstance(index, (slice, list)) and np.ndim(index) == 0:
            index = [int(index)]
        return replace(self, camera_to_world=self.camera_to_world[index], intrinsics=self.intrinsics[index])

    def resized(self, width: int, height: int) -> "Cameras":
        """The same views on another pixel grid."""
        sx, sy = width / self.width, height / self.height
        scale = torch.tensor([sx, sy, sx, sy], dtype=self.intrinsics.dtype)
        return Cameras(self.camera_to_world, self.intrinsics * scale, width, height)

    def rays(self, view: int) -> tuple[Tensor, Tensor]:
        """All rays of one view: origins and unit directions, each (H·W, 3) float32, row by row."""
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        return pixel_rays(self.camera_to_world[view].float(), self.intrinsics[view].float(), x.flatten(), y.flatten())

    def project(self, points: Tensor) -> Tensor:
        """Pixel positions and depths of world points: (M, 3) → (N, M, 3) as `x, y, depth` (depth > 0 in front)."""
        rotation, centre = self.camera_to_world[:, :3, :3], self.camera_to_world[:, :3, 3]
        local = (points.to(rotation)[None] - centre[:, None]) @ rotation  # (N, M, 3) in camera axes
        depth = -local[..., 2]
        fx, fy, cx, cy = (value[:, None] for value in self.intrinsics.unbind(1))
        return torch.stack([cx + fx * local[..., 0] / depth, cy - fy * local[..., 1] / depth, depth], dim=-1)


def pixel_rays(camera_to_world: Tensor, intrinsics: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rays through the centres of pixels.

    Args:
        camera_to_world: (..., 4, 4); intrinsics: (..., 4); x, y: (...) column and row of each pixel.

    Returns:
        Origins and unit directions in the world, each (..., 3).
    """
    fx, fy, cx, cy = intrinsics.unbind(-1)
    u, v = (x + 0.5 - cx) / fx, (cy - y - 0.5) / fy
    local = torch.stack(torch.broadcast_tensors(u, v, -torch.ones_like(u)), dim=-1)
    directions = torch.einsum("...ij,...j->...i", camera_to_world[..., :3, :3], local)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return camera_to_world[..., :3, 3].expand_as(directions), directions


def look_at(eye, target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0)) -> Tensor:
    """The (4, 4) float64 camera-to-world matrix of a camera at `eye` that looks at `target`."""
    eye, target, up = (np.asarray(v, dtype=np.float64) for v in (eye, target, up))
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return torch.from_numpy(matrix)


def orbit_cameras(azimuth, elevation, size: int, radius: float = RADIUS, fov: float = FOV) -> Cameras:
    """Cameras on a sphere around the subject, looking at its centre.

    Args:
        azimuth: degrees, a number or N of them; 0 faces the subject (camera on +z), positive moves towards +x.
        elevation: degrees above the horizon, broadcast against `azimuth`.
        size: image width and height in pixels.
        radius: distance of the camera from the origin, in world units.
        fov: horizontal field of view in radians.
    """
    azimuth, elevation = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, float)) for a in (azimuth, elevation)))
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    eyes = radius * np.stack([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)], axis=1)
    focal = size / (2 * math.tan(fov / 2))
    intrinsics = torch.tensor([focal, focal, size / 2, size / 2], dtype=torch.float64).expand(len(eyes), 4).clone()
    return Cameras(torch.stack([look_at(eye) for eye in eyes]), intrinsics, size, size)


def capture_cameras(views: int, size: int, seed: int) -> Cameras:
    """The cameras of one synthetic subject: frame 0 frontal, the others spread evenly over −25° … 50° of elevation.

    An R2 low-discrepancy sequence, shifted in both directions by numbers drawn from the seed, covers the band without
    clusters; every subject is seen from other directions and heights.
    """
    turn, lift = np.random.default_rng([seed, 0xCA]).uniform(0, 1, 2)
    i = np.arange(views - 1)
    ring = np.argsort(np.argsort(i * 0.7548776662466927 % 1)) + lift  # one view in each of as many rings
    low, high = math.sin(math.radians(-25)), math.sin(math.radians(50))
    # Any prefix and every k-th frame still cover the band.
    elevation = np.degrees(np.arcsin(low + (high - low) * ring / max(1, views - 1)))
    azimuth = 360 * ((turn + i * 0.5698402909980532) % 1)
    return orbit_cameras(np.r_[0, azimuth], np.r_[0, elevation], size)


@dataclass(frozen=True)
class Capture:
    """One subject: its views, and the words that go with it.

    Attributes:
        name: the folder's name.
        images: (V, H, W, 4) uint8, RGBA with straight alpha.
        cameras: V cameras; frame 0 is the frontal portrait in the project's own data.
        caption: English sentence, or "".
        attributes: JSON-able description of a synthetic subject, or {}.
        has_alpha: False when the images came without alpha (it is then 1 everywhere and `background` was behind).
        background: RGB in [0, 1] behind images without alpha.
    """

    name: str
    images: np.ndarray
    cameras: Cameras
    caption: str = ""
    attributes: dict = field(default_factory=dict)
    has_alpha: bool = True
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def held_out(self) -> tuple[list[int], list[int]]:
        """Indices of (training, held-out) views: every eighth view, never the portrait, is kept for evaluation."""
        test = list(range(4, len(self.images), 8))
        return [v for v in range(len(self.images)) if v not in test], test


def find_captures(data: str | Path) -> list[Path]:
    """The capture folders of `data`: itself when it holds `transforms.json`, else its subfolders that do, sorted."""
    data = Path(data)
    if not data.is_dir():
        raise DataError(f"{data} is not a folder: give a capture (images + transforms.json) or a folder of captures")
    if (data / "transforms.json").is_file():
        return [data]
    folders = sorted(p.parent for p in data.glob("*/transforms.json") if not p.parent.name.startswith("."))
    if not folders:
        raise DataError(f"{data} holds no transforms.json, neither itself nor in a subfolder: nothing to load")
    return folders


def load_capture(folder: str | Path, scale: float | None = None, offset: tuple | None = None) -> Capture:
    """Read a Blender- or nerfstudio-style capture.

    Intrinsics come from `fl_x` (`fl_y`, `cx`, `cy`; in a frame or for all) or from `camera_angle_x`. Camera positions
    are brought into the box as `scale · position + offset`; both may stand in the file. `"up": "z"` in the file turns a
    z-up world (Blender's) into ours. Images may be of any one size, RGB or RGBA (8 or 16 bit, grey, palette).

    Args:
        folder: holds `transforms.json` and the images it names.
        scale, offset: override the file's; defaults 1 and (0, 0, 0).

    Raises:
        DataError: one line that names the file or frame at fault and what is wrong with it.
    """
    folder = Path(folder)
    path = folder / "transforms.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: a capture is a folder of images with a transforms.json") from None
    except (OSError, ValueError, RecursionError) as error:  # not text, not JSON, or numbers without end
        raise DataError(f"{path} is not readable JSON: {error}") from None
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise DataError(f'{path} has no "frames" list: expected [{{"file_path": …, "transform_matrix": …}}, …]')
    if any(part.get(key) for part in (meta, *frames) for key in ("k1", "k2", "k3", "k4", "p1", "p2")):
        raise DataError(f"{path} has lens distortion (k1 … p2): undistort the images first")

    loaded = [_read_image(folder, frame, i) for i, frame in enumerate(frames)]
    sizes = {(image.shape[1], image.shape[0]) for image, _ in loaded}
    if len(sizes) > 1:
        raise DataError(f"{path}: images differ in size ({sorted(sizes)[0]} and {sorted(sizes)[-1]}): make them equal")
    width, height = sizes.pop()
    wanted = (meta.get("w", width), meta.get("h", height))
    if wanted != (width, height):
        raise DataError(f"{path} says images are {wanted[0]}×{wanted[1]}, but the files are {width}×{height}")

    scale = _numbers(meta.get("scale", 1.0) if scale is None else scale, (), f"{path}: scale")
    offset = _numbers(meta.get("offset", (0, 0, 0)) if offset is None else offset, (3,), f"{path}: offset")
    if scale <= 0:
        raise DataError(f"{path}: scale is {scale}, but must be positive")
    turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) if meta.get("up", "y") == "z" else np.eye(3)
    matrices, intrinsics = [], []
    for i, frame in enumerate(frames):
        matrix = _pose(frame, i, path)
        matrix[:3] = turn @ matrix[:3]
        matrix[:3, 3] = scale * matrix[:3, 3] + offset
        matrices.append(matrix)
        intrinsics.append(_intrinsics({**meta, **frame}, width, height, f"{path}: frame {i}"))
    cameras = Cameras(torch.tensor(np.stack(matrices)), torch.tensor(intrinsics, dtype=torch.float64), width, height)
    _check_cameras_see_the_box(cameras, path)

    caption, attributes = meta.get("caption", ""), meta.get("attributes", {})
    return Capture(
        name=folder.resolve().name,
        images=np.stack([image for image, _ in loaded]),
        cameras=cameras,
        caption=caption if isinstance(caption, str) else "",
        attributes=attributes if isinstance(attributes, dict) else {},
        has_alpha=any(alpha for _, alpha in loaded),
        background=tuple(_numbers(meta.get("background", (1, 1, 1)), (3,), f"{path}: background").tolist()),
    )


def save_capture(capture: Capture, folder: str | Path) -> Path:
    """Write a capture as PNG + `transforms.json`; the folder appears whole or not at all."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        frames = []
        for i, image in enumerate(capture.images):
            image = image if capture.has_alpha else np.ascontiguousarray(image[..., :3])
            Image.fromarray(image).save(scratch / f"{i:03d}.png", compress_level=6)
            matrix = capture.cameras.camera_to_world[i].tolist()
            frames.append({"file_path": f"{i:03d}.png", "transform_matrix": matrix})
        keys = ("fl_x", "fl_y", "cx", "cy")
        intrinsics = [dict(zip(keys, values, strict=True)) for values in capture.cameras.intrinsics.tolist()]
        shared = all(values == intrinsics[0] for values in intrinsics)
        if not shared:
            frames = [frame | values for frame, values in zip(frames, intrinsics, strict=True)]
        meta = {
            "camera_angle_x": 2 * math.atan(capture.cameras.width / (2 * intrinsics[0]["fl_x"])),
            **(intrinsics[0] if shared else {}),
            **{"w": capture.cameras.width, "h": capture.cameras.height},
            **({} if capture.has_alpha else {"background": capture.background}),
            "caption": capture.caption,
            "attributes": capture.attributes,
            "frames": frames,
        }
        (scratch / "transforms.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        os.chmod(scratch, 0o755)
        if folder.exists():  # a rename is the only moment at which the old one is not there
            os.replace(folder, scratch.with_name(scratch.name + ".old"))
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch.with_name(scratch.name + ".old"), ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _read_image(folder: Path, frame: dict, i: int) -> tuple[np.ndarray, bool]:
    """The RGBA image of a frame, (H, W, 4) uint8, and whether it came with an alpha channel."""
    name = frame.get("file_path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{folder}: frame {i} has no usable file_path")
    path = folder / name
    if not path.suffix or not path.is_file():
        path = next((p for p in (path, path.with_name(path.name + ".png")) if p.is_file()), path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: frame {i} points outside the folder ({name}): keep images beside transforms.json")
    if not path.is_file():
        raise DataError(f"{path} does not exist, but frame {i} of transforms.json names it")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width}×{image.height} pixels, > {MAX_PIXELS // 10**6} M: scale it")
            has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            if image.mode.startswith("I;16") or image.mode == "I":
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.array(image.convert("RGBA")), has_alpha
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path} is too large an image; at most {MAX_PIXELS // 10**6} M pixels: scale it") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise DataError(f"{path} is not a readable image: {error}") from None


def _numbers(value, shape: tuple, what: str) -> np.ndarray:
    """`value` as finite float64 numbers of this shape, or a DataError."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{what} is not numeric: {str(value)[:60]}") from None
    if array.shape != shape:
        raise DataError(f"{what} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{what} has NaN or infinite entries")
    return array


def _pose(frame: dict, i: int, path: Path) -> np.ndarray:
    what = f"{path}: transform_matrix of frame {i}"
    matrix = np.asarray(frame.get("transform_matrix"), dtype=object)
    matrix = _numbers(frame.get("transform_matrix"), (3, 4) if matrix.shape == (3, 4) else (4, 4), what)
    matrix = np.concatenate([matrix[:3], [[0, 0, 0, 1.0]]])
    rotation = matrix[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise DataError(f"{what} is not rigid (rotation and translation only, camera to world)")
    return matrix


def _intrinsics(meta: dict, width: int, height: int, what: str) -> list[float]:
    if "fl_x" in meta:
        fx = float(_numbers(meta["fl_x"], (), f"{what}: fl_x"))
    elif "camera_angle_x" in meta:
        angle = float(_numbers(meta["camera_angle_x"], (), f"{what}: camera_angle_x"))
        fx = width / (2 * math.tan(angle / 2)) if 0 < angle < math.pi else -1.0
    else:
        raise DataError(f"{what} has neither fl_x nor camera_angle_x: the focal length is not known")
    fy = float(_numbers(meta.get("fl_y", fx), (), f"{what}: fl_y"))
    if not (fx > 0 and fy > 0):
        raise DataError(f"{what}: focal length must be positive (or 0 < camera_angle_x < π radians)")
    centre = [float(_numbers(meta.get(k, d), (), f"{what}: {k}")) for k, d in (("cx", width / 2), ("cy", height / 2))]
    return [fx, fy, *centre]


def _check_cameras_see_the_box(cameras: Cameras, path: Path) -> None:
    grid = torch.linspace(-1, 1, 5, dtype=torch.float64)
    x, y, depth = cameras.project(torch.cartesian_prod(grid, grid, grid)).unbind(-1)
    seen = ((depth > 0) & (x >= 0) & (x <= cameras.width) & (y >= 0) & (y <= cameras.height)).any(1)
    if not seen.all():
        i = int((~seen).nonzero()[0])
        raise DataError(f"{path}: the camera of frame {i} does not see the box [-1, 1]³: set scale and offset")
