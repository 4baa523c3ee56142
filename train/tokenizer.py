"""A byte-pair tokenizer of CLIP's shape, trained on captions: `vocab.json` + `merges.txt`, 77 positions.

Every byte is in the vocabulary, inside and at the end of a word, so any Unicode text has ids and none is unknown.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"
POSITIONS = 77


def train_tokenizer(texts: Iterable[str], merges: int) -> CLIPTokenizer:
    """At most `merges` merges learned from `texts`; ids are bytes, bytes that end a word, merges, start, end."""
    template = CLIPTokenizer()._tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX, unk_token=END))
    bpe.normalizer, bpe.pre_tokenizer = template.normalizer, template.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges, end_of_word_suffix=SUFFIX, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    learned = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *(byte + SUFFIX for byte in alphabet), *(a + b for a, b in learned), START, END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=learned, model_max_length=POSITIONS)


def pad_ids(tokenizer: CLIPTokenizer, texts: Iterable[str], length: int = POSITIONS) -> Tensor:
    """(N, length) int64, padded and truncated as the pipelines do."""
    return tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
