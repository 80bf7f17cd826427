"""What a synthetic person is: every attribute drawn from a seed, as plain JSON."""

import dataclasses
import math
import zlib
from dataclasses import dataclass

import numpy as np

from minirodin.errors import DataError

# The values of every categorical attribute; hair_color ends with the dyed ones.
CHOICES = {
    "gender": ("woman", "man"),
    "expression": ("neutral", "slight smile", "smile", "open smile", "frown", "surprised"),
    "eye_color": ("brown", "dark brown", "hazel", "green", "blue", "grey"),
    "hair_style": (
        "bald", "buzz", "short", "side part", "slicked back", "pixie", "mohawk",
        "bob", "long", "bun", "ponytail", "afro", "curly",
    ),
    "hair_color": (
        "black", "dark brown", "brown", "blond", "red", "grey", "white", "blue", "pink", "green", "purple",
    ),
    "hair_part": ("left", "middle", "right"),
    "facial_hair": ("none", "stubble", "moustache", "goatee", "full"),
    "makeup": ("none", "light", "strong"),
    "lip_color": ("natural", "pink", "red", "plum"),
    "glasses": ("none", "round", "square", "sun"),
    "frame_color": ("black", "brown", "gold", "silver", "red", "blue"),
    "hat": ("none", "cap", "beanie"),
    "hat_color": (
        "white", "black", "grey", "red", "orange", "yellow", "green", "teal", "blue", "navy", "purple", "pink", "brown",
    ),
    "earrings": ("none", "studs", "hoops"),
    "earring_color": ("gold", "silver"),
    "clothing": ("t-shirt", "shirt", "hoodie"),
    "clothing_pattern": ("plain", "stripes", "checks"),
    "clothing_color": (
        "white", "black", "grey", "red", "orange", "yellow", "green", "teal", "blue", "navy", "purple", "pink", "brown",
    ),
}  # fmt: skip

# Every number's closed range.
RANGES = {
    "age": (18, 85), "skin_tone": (0, 1), "weight": (0, 1), "muscle": (0, 1), "hair_length": (0, 1),
    "hair_curl": (0, 1), "hair_volume": (0, 1), "facial_hair_length": (0, 1), "brow_thickness": (0, 1),
    "freckles": (0, 1),
}  # fmt: skip

# sRGB in [0, 1] of the plain colour names that cloth, hats and frames use.
COLORS = {
    "white": (0.90, 0.90, 0.88), "black": (0.08, 0.08, 0.09), "grey": (0.50, 0.51, 0.53), "red": (0.72, 0.13, 0.14),
    "orange": (0.89, 0.47, 0.13), "yellow": (0.92, 0.79, 0.25), "green": (0.20, 0.50, 0.26), "teal": (0.10, 0.53, 0.54),
    "blue": (0.20, 0.39, 0.74), "navy": (0.12, 0.16, 0.34), "purple": (0.45, 0.25, 0.58), "pink": (0.91, 0.56, 0.68),
    "brown": (0.42, 0.27, 0.17), "gold": (0.83, 0.66, 0.32), "silver": (0.74, 0.75, 0.77),
}  # fmt: skip
HAIR_COLORS = {
    "black": (0.10, 0.085, 0.08), "dark brown": (0.23, 0.15, 0.11), "brown": (0.38, 0.25, 0.16),
    "blond": (0.68, 0.57, 0.41), "red": (0.47, 0.22, 0.13), "grey": (0.54, 0.53, 0.52), "white": (0.88, 0.87, 0.85),
    "blue": (0.16, 0.33, 0.66), "pink": (0.85, 0.42, 0.60), "green": (0.20, 0.50, 0.32), "purple": (0.42, 0.24, 0.58),
}  # fmt: skip


def linear(srgb) -> np.ndarray:
    """Linear RGB, (3,) float64, of an sRGB triple in [0, 1] (IEC 61966-2-1)."""
    c = np.asarray(srgb, dtype=np.float64)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream called `name` of a seed: independent of every other, so a new attribute moves no old one."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# What a portrait shows of whom.
LONG = ("bob", "long", "curly")  # styles that cover the ears, and show under a hat
TIED = ("bun", "ponytail")  # styles that are one from the front: hair tied back
FRINGED = ("short", "bob", "long", "pixie", "curly", "ponytail")  # styles that come with a fringe and without
BEARDS = ("moustache", "goatee", "full")  # enough to show the colour of the hair …
DYES = ("blue", "pink", "green", "purple")  # … but for these: nobody dyes a beard


@dataclass(frozen=True)
class Attributes:
    """One person. Categories are listed in `CHOICES`, ranges in `RANGES`; left and right are the person's own.

    Raises DataError, in one line, for a value outside them.
    """

    seed: int  # feeds every random stream of the geometry, and the local shape of the face
    gender: str = "woman"
    age: float = 30.0  # years
    ancestry: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)  # African, Asian, European shares; they sum to 1
    skin_tone: float = 0.3  # melanin, 0 = lightest
    weight: float = 0.5
    muscle: float = 0.5
    expression: str = "neutral"
    eye_color: str = "brown"
    hair_style: str = "short"
    hair_color: str = "brown"
    hair_length: float = 0.5  # within the style
    hair_curl: float = 0.2  # below 1/3 straight, below 2/3 wavy
    hair_volume: float = 0.5
    hair_part: str = "left"
    fringe: bool = False
    facial_hair: str = "none"
    facial_hair_length: float = 0.5
    brow_thickness: float = 0.5
    freckles: float = 0.0
    makeup: str = "none"
    lip_color: str = "natural"
    glasses: str = "none"
    frame_color: str = "black"
    hat: str = "none"
    hat_color: str = "red"
    earrings: str = "none"
    earring_color: str = "gold"
    clothing: str = "t-shirt"
    clothing_color: str = "blue"
    clothing_pattern: str = "plain"

    def __post_init__(self):
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise DataError(f"attributes: seed is {self.seed!r}; give an integer >= 0")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"attributes: {name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}")
        for name, (low, high) in RANGES.items():
            if not _is_number(getattr(self, name)) or not low <= getattr(self, name) <= high:
                raise DataError(f"attributes: {name} is {getattr(self, name)!r}; give a number in [{low}, {high}]")
        shares = self.ancestry
        if not (isinstance(shares, (tuple, list)) and len(shares) == 3 and all(_is_number(s) and s >= 0 for s in shares)
                and abs(sum(shares) - 1) < 1e-3):  # fmt: skip
            raise DataError(f"attributes: ancestry is {shares!r}; give three shares >= 0 that sum to 1")
        if not isinstance(self.fringe, bool):
            raise DataError(f"attributes: fringe is {self.fringe!r}; give true or false")
        object.__setattr__(self, "ancestry", tuple(float(s) for s in shares))

    def to_dict(self) -> dict:
        """Plain values that `json` writes and `from_dict` reads back to an equal object."""
        return {**dataclasses.asdict(self), "ancestry": list(self.ancestry)}

    @classmethod
    def from_dict(cls, values: dict) -> "Attributes":
        """The attributes that `to_dict` wrote. Raises DataError for an unknown or missing key or a bad value."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or "seed" not in values:
            raise DataError(f"attributes: got a {type(values).__name__} without 'seed'; give what to_dict wrote")
        if unknown := sorted(set(map(str, values)) - set(names)):
            raise DataError(f"attributes: unknown key {unknown[0]!r}; known are {', '.join(names)}")
        return cls(**values)

    def rng(self, name: str) -> np.random.Generator:
        """The stream called `name` of this person's seed."""
        return stream(self.seed, name)

    def local_shape(self, count: int) -> np.ndarray:
        """The person's own shape of the face: (count,) standard normal coefficients clipped to [-2, 2]."""
        return np.clip(self.rng("local_shape").standard_normal(count), -2, 2)

    @property
    def hair_shows(self) -> bool:
        """Whether the style can be seen."""
        return self.hat == "none" or self.hair_style in LONG

    @property
    def style_in_front(self) -> str:
        """The style as far as it can be told from the front."""
        return "tied back" if self.hair_style in TIED else self.hair_style

    @property
    def hair_color_shows(self) -> bool:
        """Whether hair or beard shows the colour."""
        bearded = self.facial_hair in BEARDS and self.hair_color not in DYES
        return bearded or (self.hair_style != "bald" and self.hair_shows)

    @property
    def hair_texture(self) -> str:
        return "straight" if self.hair_curl < 1 / 3 else "wavy" if self.hair_curl < 2 / 3 else "curly"


def _is_number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


# Weights of the hair styles, in the order of CHOICES: plausible, yet no style rare over both genders.
_STYLE_WEIGHTS = {
    "woman": (2, 2, 4, 4, 3, 9, 2, 18, 22, 11, 12, 7, 9),
    "man": (10, 13, 19, 14, 8, 2, 5, 3, 7, 3, 2, 6, 9),
}


def sample_attributes(seed: int) -> Attributes:
    """Draw one person: plausible correlations (age greys hair, men grow beards), every class well represented.

    seed: integer >= 0; below 1 000 000 for training, to 1 999 999 for validation.
    """

    def number(name, low=0.0, high=1.0):
        return round(low + (high - low) * stream(seed, name).random(), 4)

    def pick(name, weights=None):
        cumulative = np.cumsum(weights or [1] * len(CHOICES[name]))
        return CHOICES[name][int(np.searchsorted(cumulative, stream(seed, name).random() * cumulative[-1], "right"))]

    def chance(name, probability):
        return bool(stream(seed, name).random() < probability)

    gender = pick("gender")
    woman = gender == "woman"
    age = round(18 + 64 * stream(seed, "age").random() ** 1.4, 1)
    shares = np.round(stream(seed, "ancestry").dirichlet([0.5, 0.5, 0.5]), 4)
    shares[np.argmax(shares)] += 1 - shares.sum()
    african, asian, european = shares = tuple(round(float(s), 4) for s in shares)
    # Sharpened, since plain averages of mixed shares would bunch in the middle browns.
    african_, asian_, european_ = np.array(shares) ** 1.5 / np.sum(np.array(shares) ** 1.5)
    spread = (0.10 - 0.03 * european_) * stream(seed, "skin_tone").standard_normal()
    tone = round(float(np.clip(0.84 * african_ + 0.33 * asian_ + 0.06 * european_ + spread, 0.02, 0.97)), 4)

    style = pick("hair_style", _STYLE_WEIGHTS[gender])
    grey = 1 / (1 + math.exp((64 - age) / 6))
    natural = [1.5 + 3.5 * (african + asian), 2, 1.6 + european, 0.9 + 3.2 * european, 0.6 + 2.2 * european]
    natural = [(1 - grey) * w / sum(natural) for w in natural]
    old = [0.62 * grey + 0.02, 0.38 * grey + 0.02 * (age > 40)]
    hair_color = pick("hair_color", [*natural, *old, *[0.012 if age < 60 else 0.002] * 4])
    curl = number("hair_curl", *((0.7, 1) if style in ("afro", "curly") else (0.25 * african, 0.6 + 0.4 * african)))

    facial_hair = pick("facial_hair", [1, 0, 0, 0, 0] if woman else [30, 16, 16, 12, 26])
    clothing = pick("clothing")
    hat_room = style not in ("afro", "mohawk", "bun")  # these do not fit under a hat
    makeup = pick("makeup", [35, 40, 25] if woman else [1, 0, 0])
    return Attributes(
        seed=seed,
        gender=gender,
        age=age,
        ancestry=shares,
        skin_tone=tone,
        weight=number("weight", 0.2, 0.85),
        muscle=number("muscle", 0.25, 0.75),
        expression=pick("expression", [28, 18, 20, 12, 11, 11]),
        eye_color=pick("eye_color", [3, 5.3 - 5 * european, 1, 1.6 * european + 0.1, 3 * european + 0.2, european]),
        hair_style=style,
        hair_color=hair_color,
        hair_length=number("hair_length"),
        hair_curl=curl,
        hair_volume=number("hair_volume"),
        hair_part=pick("hair_part", [40, 0 if style == "side part" else 30, 30]),
        fringe=style in ("short", "bob", "long", "pixie", "curly", "ponytail") and chance("fringe", 0.35),
        facial_hair=facial_hair,
        facial_hair_length=number("facial_hair_length"),
        brow_thickness=number("brow_thickness", *((0.1, 0.7) if woman else (0.3, 1.0))),
        freckles=number("freckles", 0.3, 1.0) if chance("has_freckles", 0.22 if tone < 0.4 else 0.02) else 0.0,
        makeup=makeup,
        lip_color=pick("lip_color", {"none": [1, 0, 0, 0], "light": [2, 3, 1, 0], "strong": [0, 1, 3, 2]}[makeup]),
        glasses=pick("glasses", [65, 12, 12, 11]),
        frame_color=pick("frame_color", [5, 3, 2, 2, 1, 1]),
        hat=pick("hat", [74, 13, 13] if hat_room else [1, 0, 0]),
        hat_color=pick("hat_color"),
        earrings=pick("earrings", [50, 26, 24] if woman else [88, 8, 4]),
        earring_color=pick("earring_color"),
        clothing=clothing,
        clothing_color=pick("clothing_color"),
        clothing_pattern=pick("clothing_pattern", {"t-shirt": [3, 1, 0], "shirt": [2, 0, 1]}.get(clothing, [1, 0, 0])),
    )
