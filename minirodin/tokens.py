"""Texts as tokens: CLIP's byte pairs, of which the project's own encoder knows only those that its captions use."""

import functools
import re

import torch
from torch import Tensor

from minirodin.errors import CheckpointError
from minirodin.perceptual import import_torchvision

PAD, UNKNOWN, START, FIRST = 0, 1, 2, 3  # compact token ids; the end token is the highest, as open_clip's pooling wants
LONGEST_WORD, LONGEST_TEXT = 40, 4000  # characters; the tokenizer's merging takes quadratic time in a word's length


def import_open_clip():
    """Import open_clip, which takes a second or two and needs torchvision; raises `CheckpointError` where it is not."""
    try:
        import_torchvision()
        import open_clip
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{error.name} is missing: pip install open_clip_torch") from None
    return open_clip


class CompactTokenizer:
    """CLIP's byte-pair tokens, renumbered: of 49 408 only those of a vocabulary, all others are one unknown token.

    Args:
        vocabulary: the tokens of open_clip's tokenizer that are known, without start and end.
        context: tokens of a text, with start and end.
    """

    def __init__(self, vocabulary: list[int], context: int):
        self.vocabulary, self.context = sorted(set(vocabulary)), context
        self.ids = {token: FIRST + i for i, token in enumerate(self.vocabulary)}
        self.end = FIRST + len(self.vocabulary)
        self.size = self.end + 1

    @classmethod
    def of_texts(cls, texts: list[str], context: int) -> "CompactTokenizer":
        """Its vocabulary is what these texts use."""
        return cls(sorted({token for text in texts for token in bpe(text)}), context)

    def encode(self, text: str) -> list[int]:
        """All tokens of a text, between start and end, however many."""
        return [START, *(self.ids.get(token, UNKNOWN) for token in bpe(text)), self.end]

    def decode(self, tokens) -> str:
        """The text of tokens, "?" for each unknown one."""
        tokenizer = _bpe_tokenizer()
        inner = [int(t) for t in tokens if int(t) not in (PAD, START, self.end)]
        return "".join("? " if t == UNKNOWN else tokenizer.decode([self.vocabulary[t - FIRST]]) for t in inner).strip()

    def __call__(self, texts: list[str]) -> tuple[Tensor, list[int], list[int]]:
        """(B, context) int64; the indices of texts that were too long, and of those in which no word is known."""
        tokens, long, strange = torch.full((len(texts), self.context), PAD), [], []
        for i, text in enumerate(texts):
            ids = self.encode(text)
            if len(ids) > self.context:
                long.append(i)
                ids = [*ids[: self.context - 1], self.end]
            if not any(re.search(r"\w", self.decode([t])) for t in ids if t != UNKNOWN):
                strange.append(i)
            tokens[i, : len(ids)] = torch.tensor(ids)
        return tokens, long, strange


class PublishedTokenizer:
    """The tokenizer of a published open_clip model, with the interface of `CompactTokenizer`."""

    def __init__(self, tokenizer):
        self.tokenizer, self.context = tokenizer, tokenizer.context_length

    def __call__(self, texts: list[str]) -> tuple[Tensor, list[int], list[int]]:
        *longer, empty = self.tokenizer([*texts, ""], context_length=self.context + 1)
        return self.tokenizer(texts), [i for i, row in enumerate(longer) if row[-1] != empty[-1]], []


@functools.lru_cache(maxsize=1)
def _bpe_tokenizer():
    return import_open_clip().tokenizer.SimpleTokenizer()


@functools.lru_cache(maxsize=65_536)
def _bpe_word(word: str) -> tuple[int, ...]:
    return tuple(_bpe_tokenizer().encode(word))


def bpe(text: str) -> list[int]:
    """CLIP's tokens of a text: its words', for no token spans a blank."""
    return [token for word in text.split() for token in _bpe_word(word)]


def shortened(text: str) -> str:
    """A text with as much of it, and of each word, as a tokenizer can digest."""
    return " ".join(word[:LONGEST_WORD] for word in text[:LONGEST_TEXT].split())
