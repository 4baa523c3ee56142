"""CLIP's byte-pair tokenizer: text to ids, the same ones `transformers` gives, with neither torch nor transformers.

Reads `tokenizer.json`, or builds the same from `vocab.json` and `merges.txt`. Any Unicode works; the empty text is the
unconditional prompt; a text that is too long loses its end, and the caller learns how many tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, eq=False)
class Encoded:
    """`ids` (B, T) int64; `dropped` (B,) tokens per text that did not fit."""

    ids: np.ndarray
    dropped: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Texts to (B, `tokens`) ids: start, the text, end, padding."""

    model: tokenizers.Tokenizer
    tokens: int
    start: int
    end: int
    pad: int

    @classmethod
    def open(cls, folder: Path, tokens: int) -> "Tokenizer":
        """Read a `tokenizer/` folder. Raises BundleError."""
        model = from_file(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else from_vocab(folder)
        model.no_truncation()
        model.no_padding()
        ids = {}
        for role, name in _special_tokens(folder).items():
            token = model.token_to_id(name)
            if token is None:
                raise BundleError(f"{folder}: '{name}' ({role}) is not in the vocabulary; fetch the folder again")
            ids[role] = token
        return cls(model, tokens, ids["bos_token"], ids["eos_token"], ids["pad_token"])

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Raises UsageError for a text whose bytes were not UTF-8."""
        room = self.tokens - 2
        ids = np.full((len(texts), self.tokens), self.pad, np.int64)
        dropped = []
        for row, text in zip(ids, texts, strict=True):
            words = self._encode(text)
            kept = [self.start, *words[:room], self.end]
            row[: len(kept)] = kept
            dropped.append(max(0, len(words) - room))
        return Encoded(ids, tuple(dropped))

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = ascii(text[max(0, error.start - 20) : error.start + 20])
            raise UsageError(f"the prompt is not UTF-8 at character {error.start}: {shown}; convert it first") from None
        return self.model.encode(text, add_special_tokens=False).ids


def from_file(path: Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json`. Raises BundleError."""
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BundleError(f"{path}: not a tokenizer: {error}; fetch it again") from error


def from_vocab(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of `vocab.json` and `merges.txt`. Raises BundleError."""
    paths = folder / "vocab.json", folder / "merges.txt"
    for path in paths:
        if not path.is_file():
            raise BundleError(f"{path}: no such file, and no tokenizer.json beside it; fetch the folder again")
    try:
        vocab, merges = models.BPE.read_file(*map(str, paths))
        bpe = models.BPE(
            vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
        )
    except Exception as error:  # the library raises nothing narrower
        raise BundleError(f"{folder}: not a byte-pair vocabulary: {error}; fetch it again") from error
    model = tokenizers.Tokenizer(bpe)
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (START, END)])
    return model


def _special_tokens(folder: Path) -> dict[str, str]:
    """Role → token, from the configs that say so, else CLIP's."""
    names = {"bos_token": START, "eos_token": END, "pad_token": END}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        config: Any = read_json(folder / file) if (folder / file).exists() else {}
        for role in names:
            token = config.get(role)
            if token is not None:
                names[role] = token["content"] if isinstance(token, dict) else token
    return names
