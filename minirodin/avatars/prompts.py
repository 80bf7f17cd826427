"""What words and pictures tell of a person, aspect by aspect: classes, short prompts, and what a text claims.

An `Aspect` ("hair_color") has classes ("red"), phrases for each ("red hair"), a rule for which class a person belongs
to, one for whether a picture shows it, and patterns that find it in a caption. So that a text may be held against a
person: it is true of everybody whom it does not contradict.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minirodin.avatars.attributes import BEARDS, CHOICES, FRINGED, LONG, RANGES, Attributes, stream
from minirodin.avatars.captions import _article as article
from minirodin.avatars.captions import _list as listed

SYNONYMS = {"blonde": "blond", "ginger": "red", "gray": "grey"}
CLOTH = CHOICES["clothing_color"]
HAIR = "|".join(("dark brown", *(c for c in CHOICES["hair_color"] if c != "dark brown"), *SYNONYMS))
EYES = "|".join(("dark brown", *(c for c in CHOICES["eye_color"] if c != "dark brown"), "gray"))
FRAMES = "|".join(CHOICES["frame_color"])
TEXTURE = "straight|wavy|curly"


@dataclass(frozen=True)
class Aspect:
    """One thing that may be told of a person.

    Attributes:
        name: of the attribute, or of what derives from it.
        form: how its phrases join a sentence: noun | adjective | doing | with | wearing.
        phrases: class → synonyms; what has none is only ever claimed, never prompted.
        patterns: (regular expression, classes that it claims) in order of precedence; no classes: its group is one.
        of: a person's class, or None where none fits.
        visible: whether a frontal picture shows it.
    """

    name: str
    form: str
    phrases: dict[str, tuple[str, ...]]
    patterns: tuple[tuple[str, tuple[str, ...]], ...]
    of: Callable[[Attributes], str | None]
    visible: Callable[[Attributes], bool] = lambda a: True

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.phrases)

    def claim(self, text: str) -> tuple[str, ...]:
        """The classes that a lower-case text leaves open, () if it says nothing."""
        for pattern, classes in self.patterns:
            if found := re.search(pattern, text):
                return classes or (SYNONYMS.get(found[1], found[1]),)
        return ()


def _age(a: Attributes) -> str | None:
    return "young" if a.age < 32 else None if a.age < 45 else "middle-aged" if a.age < 62 else "old"


def _skin(a: Attributes) -> str:
    return ("light", "medium", "brown", "deep brown")[sum(a.skin_tone >= bound for bound in (0.25, 0.5, 0.75))]


def _texture(a: Attributes) -> str | None:
    if a.hair_style == "curly":
        return "curly"
    return a.hair_texture if a.hair_style in ("short", "side part", "ponytail", "bob", "long") else None


def _hair_color(a: Attributes) -> str | None:
    return None if a.hair_style == "bald" and a.facial_hair not in BEARDS else a.hair_color


def _beard_length(a: Attributes) -> str | None:
    long = a.facial_hair_length
    return None if a.facial_hair != "full" or 1 / 3 <= long <= 2 / 3 else "short" if long < 1 / 3 else "long"


def _brows(a: Attributes) -> str | None:
    return "thick" if a.brow_thickness > 0.75 else "thin" if a.brow_thickness < 0.3 else None


def _worn(kind: str) -> Callable[[Attributes], str | None]:
    """The colour of something that not everybody wears."""
    return lambda a: None if getattr(a, kind) in ("none", "sun") else getattr(a, _COLOR_OF[kind])


_COLOR_OF = {"glasses": "frame_color", "hat": "hat_color", "earrings": "earring_color"}


def _colors(colors, *forms: str) -> dict[str, tuple[str, ...]]:
    return {c: tuple(article(f.removeprefix("a ").format(c)) if f[:2] == "a " else f.format(c) for f in forms)
            for c in colors}  # fmt: skip


def _plainly(name: str) -> Callable[[Attributes], str]:
    return lambda a: getattr(a, name)


ASPECTS = (
    Aspect("gender", "noun", {"woman": ("woman", "lady"), "man": ("man", "guy")},
           ((r"\b(?:woman|lady|she)\b", ("woman",)), (r"\b(?:man|guy|he)\b", ("man",))), _plainly("gender")),
    Aspect("age", "adjective",
           {"young": ("young",), "middle-aged": ("middle-aged",), "old": ("old", "elderly", "older")},
           ((r"\byoung\b", ("young",)), (r"\bmiddle-aged\b", ("middle-aged",)),
            (r"\b(?:old|older|elderly)\b", ("old",))), _age),
    Aspect("expression", "doing",
           {"neutral": ("with a neutral expression", "looking straight ahead", "looking calm"),
            "slight smile": ("smiling slightly", "with a slight smile"),
            "smile": ("smiling", "with a smile", "smiling happily"),
            "open smile": ("grinning", "smiling with an open mouth", "smiling broadly"),
            "frown": ("frowning", "with a frown"), "surprised": ("looking surprised", "with raised eyebrows")},
           (("slight", ("slight smile",)), ("grinning|open mouth|broadly", ("open smile",)),
            (r"smil|\bhappy\b", ("smile",)), ("frown", ("frown",)), ("surprised|raised eyebrows", ("surprised",)),
            (r"neutral|straight ahead|\bcalm\b", ("neutral",))), _plainly("expression")),
    Aspect("eye_color", "with", _colors(CHOICES["eye_color"], "{} eyes"), ((f"({EYES}) eyes", ()),),
           _plainly("eye_color"), lambda a: a.glasses != "sun"),
    Aspect("hair_style", "with",
           {"bald": ("a bald head", "no hair", "a shaved head"),
            "buzz": ("a buzz cut", "closely cropped hair", "very short hair"),
            "short": ("short hair", "a short haircut"), "side part": ("hair in a side part", "hair parted on the side"),
            "slicked back": ("slicked-back hair", "hair combed back", "hair swept back"),
            "pixie": ("a pixie cut", "hair in a pixie cut"), "mohawk": ("a mohawk", "hair in a mohawk"),
            "bob": ("a bob", "chin-length hair"), "long": ("long hair", "hair falling over the shoulders"),
            "tied back": ("hair tied back", "hair pulled back and tied"), "afro": ("an afro", "afro hair"),
            "curly": ("curly hair", "curls")},
           ((r"\bbald\b|no hair\b|\bshaved", ("bald",)), (r"\bbuzz\b|cropped|very short", ("buzz",)),
            ("side part|parted on the side", ("side part",)),
            ("slicked|combed back|swept back", ("slicked back",)), (r"\bpixie\b", ("pixie",)),
            (r"\bmohawk\b", ("mohawk",)), (r"\bbob\b|chin-length", ("bob",)),
            (r"\b(?:bun|ponytail|tied)\b", ("tied back",)), (r"\bafro\b", ("afro",)),
            (rf"\blong (?:(?:{TEXTURE}) )?(?:(?:{HAIR}) )?hair|over the shoulders", ("long",)),
            (rf"\bshort (?:(?:{TEXTURE}) )?(?:(?:{HAIR}) )?hair", ("short",)),
            (rf"\bcurls\b|\bcurly (?:(?:{HAIR}) )?hair", ("curly",))),
           _plainly("style_in_front"), lambda a: a.hair_shows),
    Aspect("hair_texture", "with", {"straight": ("straight hair",), "wavy": ("wavy hair",), "curly": ()},
           ((rf"\b({TEXTURE})\b(?! ahead)", ()),), _texture, lambda a: a.hair_shows),
    Aspect("hair_color", "with", _colors(CHOICES["hair_color"], "{} hair"),
           ((rf"\b({HAIR}) (?:hair|buzz|pixie|mohawk|bob|bun|ponytail|afro|curls|beard|mo?ustache|goatee)", ()),),
           _hair_color, lambda a: a.hair_color_shows),
    Aspect("fringe", "with", {"fringe": ("a fringe", "bangs"), "none": ("no fringe", "no bangs")},
           (("no fringe|no bangs", ("none",)), ("fringe|bangs", ("fringe",))),
           lambda a: "fringe" if a.fringe else "none", lambda a: a.hat == "none" and a.hair_style in FRINGED),
    Aspect("facial_hair", "with",
           {"none": ("no beard", "a clean-shaven face"), "stubble": ("stubble", "a stubbly chin"),
            "moustache": ("a moustache", "a mustache"), "goatee": ("a goatee",), "full": ("a beard", "a full beard")},
           (("no beard|clean-shaven", ("none",)), ("stubbl", ("stubble",)), ("mo?ustache", ("moustache",)),
            ("goatee", ("goatee",)), ("beard", ("full",))), _plainly("facial_hair")),
    Aspect("beard_length", "with", {"short": ("a short beard",), "long": ("a long beard",)},
           ((rf"\b(short|long) (?:full |(?:{HAIR}) )?beard", ()),), _beard_length),
    Aspect("glasses", "with",
           {"none": ("no glasses",), "round": ("round glasses", "round-framed glasses"),
            "square": ("square glasses", "rectangular glasses"), "sun": ("sunglasses", "dark sunglasses", "shades")},
           (("no glasses", ("none",)), (r"sunglasses|\bshades\b", ("sun",)),
            (rf"\bround(?:-framed)? (?:(?:{FRAMES}) )?glasses", ("round",)),
            (rf"\b(?:square|rectangular) (?:(?:{FRAMES}) )?glasses", ("square",)),
            (r"\bglasses\b", ("round", "square"))), _plainly("glasses")),
    Aspect("frame_color", "with", _colors(CHOICES["frame_color"], "{} glasses"), ((rf"\b({FRAMES}) glasses", ()),),
           _worn("glasses")),
    Aspect("skin", "with",
           {"light": ("fair skin", "light skin", "pale skin"), "medium": ("medium skin", "tan skin"),
            "brown": ("brown skin",), "deep brown": ("deep brown skin",)},
           (("deep brown skin", ("deep brown",)), ("(?:fair|light|pale) skin", ("light",)),
            ("(?:medium|tan) skin", ("medium",)), ("brown skin", ("brown",)), ("dark skin", ("brown", "deep brown"))),
           _skin),
    Aspect("brows", "with", {"thick": ("thick eyebrows", "bushy eyebrows"), "thin": ("thin eyebrows",)},
           (("(?:thick|bushy) eyebrows", ("thick",)), ("thin eyebrows", ("thin",))), _brows,
           lambda a: a.hat == "none" and a.glasses != "sun"),
    Aspect("freckles", "with", {"none": ("no freckles",), "freckles": ("freckles", "a freckled face")},
           (("no freckles", ("none",)), ("freckle", ("freckles",))),
           lambda a: "freckles" if a.freckles > 0 else "none"),
    Aspect("makeup", "with", {"none": ("no makeup",), "light": ("light makeup",), "strong": ("strong makeup",)},
           (("no makeup", ("none",)), ("(light|strong) makeup", ()), ("makeup", ("light", "strong"))),
           _plainly("makeup")),
    Aspect("lip_color", "with", {"natural": ("natural lips",), **_colors(("pink", "red", "plum"), "{} lipstick")},
           ((r"\b(natural|pink|red|plum) lip", ()),), _plainly("lip_color")),
    Aspect("hat", "wearing",
           {"none": ("no hat",), "cap": ("a cap", "a baseball cap"), "beanie": ("a beanie", "a knitted beanie")},
           ((r"no hat\b", ("none",)), (r"\bcap\b", ("cap",)), ("beanie", ("beanie",)), (r"\bhat\b", ("cap", "beanie"))),
           _plainly("hat")),
    Aspect("hat_color", "wearing", _colors(CLOTH, "a {} hat"),
           ((rf"\b({'|'.join(CLOTH)}) (?:knitted beanie|baseball cap|beanie|cap|hat)\b", ()),), _worn("hat")),
    Aspect("earrings", "with",
           {"none": ("no earrings",), "studs": ("studs", "stud earrings"), "hoops": ("hoops", "hoop earrings")},
           (("no earrings", ("none",)), (r"\bstuds?\b", ("studs",)), (r"\bhoops?\b", ("hoops",)),
            ("earrings", ("studs", "hoops"))), _plainly("earrings"), lambda a: a.hair_style not in LONG),
    Aspect("earring_color", "with", _colors(CHOICES["earring_color"], "{} earrings"),
           ((r"\b(gold|silver) (?:stud|hoop|earring)", ()),), _worn("earrings"), lambda a: a.hair_style not in LONG),
    Aspect("clothing", "wearing",
           {"t-shirt": ("a t-shirt", "a tee"), "shirt": ("a shirt with a collar", "a collared shirt"),
            "hoodie": ("a hoodie", "a hooded sweatshirt")},
           ((r"t-shirt|\btee\b", ("t-shirt",)), ("collar", ("shirt",)), (r"\bhood", ("hoodie",))),
           _plainly("clothing")),
    Aspect("clothing_pattern", "wearing",
           {"plain": ("plain clothes", "a plain top"), "stripes": ("striped clothes", "a striped top"),
            "checks": ("checked clothes", "a plaid top")},
           (("striped", ("stripes",)), ("checked|plaid", ("checks",)), (r"\bplain\b", ("plain",))),
           _plainly("clothing_pattern")),
    Aspect("clothing_color", "wearing", _colors(CLOTH, "{} clothes", "a {} top"),
           ((rf"\b({'|'.join(CLOTH)}) (?:(?:striped|checked|plaid|plain) )?"
             r"(?:t-shirt|tee|shirt|collared|hoodie|hooded|top|clothes)\b", ()),), _plainly("clothing_color")),
)  # fmt: skip
# All classes with prompts, aspect after aspect.
CLASSES = [(aspect, name) for aspect in ASPECTS for name in aspect.classes if aspect.phrases[name]]
LEADS = ("a portrait of ", "a 3D avatar of ", "an avatar of ", "a head shot of ", "a picture of ", "", "", "", "", "")


def claims(text: str) -> dict[str, tuple[str, ...]]:
    """What a caption or prompt says: aspect → the classes that it leaves open, for the aspects that it mentions."""
    text = " ".join(text.lower().split())
    return {aspect.name: found for aspect in ASPECTS if (found := aspect.claim(text))}


def contradicts(text: str, attributes: Attributes) -> list[str]:
    """The aspects in which a text is false of a person; of what it does not mention it cannot be."""
    said = claims(text)
    return [x.name for x in ASPECTS if x.name in said and x.of(attributes) not in said[x.name]]


def prompt(aspect: Aspect, name: str, rng: np.random.Generator) -> str:
    """A short text that says of a person that he or she is of this class of the aspect, and nothing else."""
    return _sentence([(aspect.form, _choose(aspect.phrases[name], rng))], ("person", "person", "someone"), rng)


def partial_caption(attributes: Attributes, seed: int) -> str:
    """A text that tells one to three visible things of a person; the seed picks which, and how."""
    rng = stream(attributes.seed, f"partial {seed}")
    seen = [(x, name) for x in ASPECTS if (name := x.of(attributes)) and x.phrases[name] and x.visible(attributes)]
    weights = np.array([0.25 if name in ("none", "natural", "plain") else 1.0 for _, name in seen])
    picked = rng.choice(len(seen), min(len(seen), int(rng.integers(1, 4))), replace=False, p=weights / weights.sum())
    parts = [(seen[i][0].form, _choose(seen[i][0].phrases[seen[i][1]], rng)) for i in picked]
    return _sentence(parts, ("person", "someone", attributes.gender, attributes.gender), rng)


def _choose(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _sentence(parts: list[tuple[str, str]], nouns: tuple[str, ...], rng: np.random.Generator) -> str:
    """(form, phrase) of each thing to be said → text."""
    by = {form: [p for f, p in parts if f == form] for form in ("noun", "adjective", "doing", "with", "wearing")}
    noun = (by["noun"] or [_choose(nouns, rng)])[0]
    if noun == "someone" and not by["adjective"]:
        text = noun
    else:
        text = article(" ".join([*by["adjective"], noun.replace("someone", "person")]))
    for word in ("with", "wearing"):
        text += f" {word} {listed(by[word])}" if by[word] else ""
    text = ", ".join([text, *by["doing"]]) if rng.random() < 0.5 else " ".join([text, *by["doing"]])
    return _choose(LEADS, rng) + text


def all_kinds_of_people(count: int, seed: int = 0) -> list[Attributes]:
    """People of any combination of attributes, likely or not: between them they bring up every word of the captions."""
    rng = np.random.default_rng([seed, 0xA11])
    people = []
    for i in range(count):
        values = {name: _choose(options, rng) for name, options in CHOICES.items()}
        values |= {name: float(rng.uniform(*limits)) for name, limits in RANGES.items()}
        people.append(Attributes(seed=i, fringe=bool(rng.integers(2)), **values))
    return people
