"""Oracle: transformers' CLIPTokenizer over the same vocabulary."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.tokenizer import Tokenizer
from tests.kdc_edge.builders import END, START

TEXTS = [
    "",
    " ",
    "red apple",
    "  Red\n\tAPPLE  ",
    "a" * 10_000,
    "red apple " * 1_000,
    "👍🏽 flag: Norway 🇳🇴",
    "İstanbul ß ﬁ Å Å",
    "красное яблоко 赤いリンゴ תפוח أحمر",
    "it's 2 o'clock, they'll've 100",
    "<|endoftext|> red <|startoftext|>",
    "\x00\x1f\u200d\ufeff",
    "e\u0301 \U0010ffff",
]


@pytest.fixture(scope="module", params=["hand", "trained"])
def folder(request, tiny_checkpoint, hand_bundle):
    """vocab.json + merges.txt alone, and a tokenizer.json as transformers writes it."""
    return hand_bundle / "tokenizer" if request.param == "hand" else tiny_checkpoint / "tokenizer"


@pytest.fixture(scope="module")
def ours(folder):
    return Tokenizer.open(folder, 77)


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def reference(tokenizer, texts):
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="np")
    return encoded.input_ids


def test_the_same_ids(ours, theirs):
    assert np.array_equal(ours(TEXTS).ids, reference(theirs, TEXTS))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200) | st.text("aeipr dlht's2<|>", max_size=200))
def test_the_same_ids_for_any_text(ours, theirs, text):
    assert np.array_equal(ours([text]).ids, reference(theirs, [text]))


def test_shape_and_ends(ours):
    ids = ours(["red", ""]).ids
    assert ids.shape == (2, 77) and ids.dtype == np.int64
    assert (ids[:, 0] == ours.start).all() and (ids[1, 1:] == ours.end).all()


def test_what_does_not_fit_is_counted(ours):
    encoded = ours(["2 " * 75, "2 " * 76, "2 " * 100])
    assert encoded.dropped == (0, 1, 25)
    assert (encoded.ids[:, -1] == ours.end).all()


def test_bytes_that_are_not_utf8(ours):
    with pytest.raises(UsageError, match=r"not UTF-8 at character 4: 'red \\udcff'"):
        ours(["red \udcff"])


def test_a_padding_token_of_its_own(hand_bundle, tmp_path):
    folder = shutil.copytree(hand_bundle / "tokenizer", tmp_path / "tokenizer")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    tokenizer = Tokenizer.open(folder, 8)
    assert tokenizer(["red"]).ids[0].tolist().count(tokenizer.model.token_to_id("!")) == 5
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "nonsense"}))
    with pytest.raises(BundleError, match=r"'nonsense' \(pad_token\) is not in the vocabulary"):
        Tokenizer.open(folder, 8)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "vocab.json: no such file, and no tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json: not a tokenizer"),
        ({"vocab.json": "{", "merges.txt": ""}, "not a byte-pair vocabulary"),
        ({"vocab.json": json.dumps({START: 0, END: 1}), "merges.txt": "#version: 0.2\nx y\n"}, "not a byte-pair"),
    ],
)
def test_damage(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match=message):
        Tokenizer.open(tmp_path, 77)
