"""English captions of a synthetic person: many paraphrases that omit much and never contradict the attributes."""

from minirodin.avatars.attributes import Attributes, stream


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _list(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _hair_phrases(a: Attributes) -> list[str]:
    if a.hair_style == "bald":
        return ["a bald head", "no hair", "a shaved head"]
    names = {"blond": ["blond", "blonde"], "red": ["red", "ginger"], "grey": ["grey", "gray"]}
    phrases = []
    for color in names.get(a.hair_color, [a.hair_color]):
        fringe = [" and a fringe", " and bangs"] if a.fringe else [""]
        kind = [color, f"{a.hair_texture} {color}"]
        phrases += {
            "buzz": [_article(f"{color} buzz cut"), f"closely cropped {color} hair", f"very short {color} hair"],
            "short": [f"short {k} hair{f}" for k in kind for f in fringe] + [_article(f"short {color} haircut")],
            "side part": [f"{k} hair in a side part" for k in kind] + [f"short {color} hair parted on the side"],
            "slicked back": [f"slicked-back {color} hair", f"{color} hair combed back", f"{color} hair swept back"],
            "pixie": [_article(f"{color} pixie cut{f}") for f in fringe] + [f"{color} hair in a pixie cut"],
            "mohawk": [_article(f"{color} mohawk"), f"{color} hair in a mohawk"],
            "bob": [f"chin-length {k} hair{f}" for k in kind for f in fringe]
            + [_article(f"{k} bob{f}") for k in kind for f in fringe],
            "long": [f"long {k} hair{f}" for k in kind for f in fringe]
            + [f"{k} hair falling over the shoulders{f}" for k in kind for f in fringe],
            "bun": [f"{color} hair in a bun", _article(f"{color} bun"), f"{color} hair tied up in a bun"],
            "ponytail": [_article(f"{k} ponytail{f}") for k in kind for f in fringe]
            + [f"{color} hair tied back in a ponytail{f}" for f in fringe],
            "afro": [_article(f"{color} afro"), f"{color} afro hair", _article(f"round {color} afro")],
            "curly": [f"curly {color} hair{f}" for f in fringe] + [f"{color} curls{f}" for f in fringe],
        }[a.hair_style]
    return phrases


def _feature_phrases(a: Attributes) -> list[tuple[float, list[str]]]:
    """What follows "with" or "has": (probability of being mentioned, synonyms) for each feature."""
    features = [(0.93, _hair_phrases(a))]
    color, long = a.hair_color, a.facial_hair_length
    size = "short " if long < 1 / 3 else "long " if long > 2 / 3 else ""
    beards = {
        "stubble": ["stubble", "a stubbly chin", "a few days of stubble"],
        "moustache": ["a moustache", "a mustache", _article(f"{color} moustache")],
        "goatee": ["a goatee", _article(f"{color} goatee")],
        "full": [_article(f"{size}beard"), _article(f"{size}full beard"), _article(f"{size}{color} beard")],
    }
    features.append((0.9, beards[a.facial_hair]) if a.facial_hair != "none" else
                    (0.12 if a.gender == "man" else 0, ["no beard", "a clean-shaven face"]))  # fmt: skip
    glasses = {
        "none": ["no glasses"],
        "round": ["round glasses", f"round {a.frame_color} glasses", "round-framed glasses", "glasses"],
        "square": ["square glasses", f"square {a.frame_color} glasses", "rectangular glasses", "glasses"],
        "sun": ["sunglasses", "dark sunglasses", "shades"],
    }
    features.append((0.9 if a.glasses != "none" else 0.08, glasses[a.glasses]))
    if a.glasses != "sun":
        features.append((0.3, [f"{a.eye_color} eyes"]))
    tone = a.skin_tone
    skins = ["fair", "light", "pale"] if tone < 0.25 else ["medium", "tan"] if tone < 0.5 else ["brown", "dark"]
    features.append((0.35, [f"{skin} skin" for skin in (skins if tone < 0.75 else ["dark", "deep brown"])]))
    if a.earrings != "none":
        kind = {"studs": ["studs", "stud earrings"], "hoops": ["hoops", "hoop earrings"]}[a.earrings]
        features.append((0.5, [f"{a.earring_color} {k}" for k in kind] + ["earrings"]))
    if a.freckles > 0:
        features.append((0.5, ["freckles", "a freckled face"]))
    if a.makeup != "none":
        lips = [] if a.lip_color == "natural" else [f"{a.lip_color} lipstick"] * 2
        features.append((0.4, [f"{a.makeup} makeup", "makeup", *lips]))
    if a.brow_thickness > 0.75:
        features.append((0.25, ["thick eyebrows", "bushy eyebrows"]))
    return features


def caption(attributes: Attributes, seed: int) -> str:
    """One English description; the seed picks the template, the synonyms, the order and what is left out."""
    a, rng = attributes, stream(attributes.seed, f"caption {seed}")

    def choose(options):
        return options[int(rng.integers(len(options)))]

    def mention(probability):
        return rng.random() < probability

    nouns = ["woman", "woman", "lady"] if a.gender == "woman" else ["man", "man", "guy"]
    ages = (["young", "young", ""] if a.age < 32 else [""] if a.age < 45 else ["middle-aged", "middle-aged", ""]
            if a.age < 62 else ["old", "elderly", "older", ""])  # fmt: skip
    person = f"{choose(ages)} {choose(nouns)}".strip()
    pronoun = "She" if a.gender == "woman" else "He"
    features = [choose(options) for probability, options in _feature_phrases(a) if mention(probability)]
    features = [features[i] for i in rng.permutation(len(features))] if mention(0.5) else features

    doing, adjective = {
        "neutral": (["with a neutral expression", "looking straight ahead"], ["calm"]),
        "slight smile": (["smiling slightly", "with a slight smile"], ["slightly smiling"]),
        "smile": (["smiling", "with a smile", "smiling happily"], ["smiling", "happy"]),
        "open smile": (["grinning", "smiling with an open mouth", "smiling broadly"], ["grinning", "broadly smiling"]),
        "frown": (["frowning", "with a frown"], ["frowning"]),
        "surprised": (["looking surprised", "with raised eyebrows"], ["surprised"]),
    }[a.expression]
    doing = choose(doing) if mention(0.25 if a.expression == "neutral" else 0.75) else ""

    wear = []
    if mention(0.7):
        kind = {
            "t-shirt": ["t-shirt", "tee"],
            "shirt": ["shirt with a collar", "collared shirt"],
            "hoodie": ["hoodie", "hooded sweatshirt"],
        }
        pattern = {"plain": [""], "stripes": ["striped ", ""], "checks": ["checked ", "plaid ", ""]}[a.clothing_pattern]
        wear.append(_article(f"{a.clothing_color} {choose(pattern)}{choose(kind[a.clothing])}"))
    if a.hat != "none" and mention(0.92):
        kind = {"cap": ["cap", "baseball cap"], "beanie": ["beanie", "knitted beanie"]}[a.hat]
        wear.append(_article(choose([f"{a.hat_color} {k}" for k in kind] * 3 + kind)))
        wear = wear[::-1] if mention(0.4) else wear
    elif a.hat == "none" and mention(0.05):
        features.append("no hat")

    form = int(rng.integers(5))
    if form == 0:  # "a young woman with long red hair and round glasses, smiling, wearing a blue hoodie"
        parts = [_article(person) + (f" with {_list(features)}" if features else ""), doing]
        text = ", ".join(filter(None, [*parts, f"wearing {_list(wear)}" if wear else ""]))
    elif form == 1:  # "a smiling young woman in a blue hoodie, with long red hair and round glasses"
        text = _article(f"{choose(adjective)} {person}" if doing else person)
        text += f" {choose(['in', 'wearing'])} {_list(wear)}" if wear else ""
        text += f"{',' if wear else ''} with {_list(features)}" if features else ""
    elif form == 2:  # "young woman, long red hair, round glasses, smiling, blue hoodie"
        strip = [p.removeprefix("a ").removeprefix("an ").removeprefix("with ") for p in [*features, doing, *wear] if p]
        text = ", ".join([person, *[strip[i] for i in rng.permutation(len(strip))]])
    elif form == 3:  # "A young woman is smiling. She has long red hair. She is wearing a blue hoodie."
        text = f"{_article(person)}{', ' + doing if doing else ''}."
        text += f" {pronoun} has {_list(features)}." if features else ""
        text += f" {pronoun} {choose(['is wearing', 'wears'])} {_list(wear)}." if wear else ""
    else:  # "a portrait of a woman wearing a blue hoodie, smiling; she has long red hair and round glasses"
        lead = choose(["a portrait of ", "a 3D avatar of ", "an avatar of ", "a head shot of ", "a picture of "])
        parts = [lead + _article(person) + (f" wearing {_list(wear)}" if wear else ""), doing]
        text = ", ".join(filter(None, parts)) + (f"; {pronoun.lower()} has {_list(features)}" if features else "")
    return text[0].upper() + text[1:] if form == 3 or mention(0.3) else text


def captions(attributes: Attributes, n: int) -> list[str]:
    """The first n paraphrases: [caption(attributes, 0), ..., caption(attributes, n - 1)]."""
    return [caption(attributes, seed) for seed in range(n)]
