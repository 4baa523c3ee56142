"""Any CLIP folder: pictures prepared as its config says, scores as transformers computes them, shares as by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from kdc_edge.errors import BundleError
from kdc_edge.files import write_json
from kdc_edge.torch_ref import extractors
from kdc_edge.torch_ref.judge import Judge, Preprocess, identical, retrieval, wilson
from tests.torch_ref.seeded import picture

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OPENAI = {"size": 24, "crop_size": 24, "image_mean": MEAN, "image_std": STD, "resample": 3}


def test_pictures_are_prepared_as_transformers_does() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=MEAN, image_std=STD
    )
    pixels = np.random.RandomState(0).randint(0, 256, (40, 71, 3)).astype(np.uint8)
    expected = np.stack(theirs(images=[pixels], return_tensors="np")["pixel_values"])
    assert Preprocess.of(24, OPENAI)([pixels]).numpy() == pytest.approx(expected, abs=0.01)


def test_a_clip_without_a_preprocessor_sees_the_whole_picture() -> None:
    pixels = picture(64)
    assert Preprocess.of(64, {})([pixels])[0].permute(1, 2, 0).numpy() == pytest.approx(pixels / 127.5 - 1, abs=1e-6)
    assert Preprocess.of(32, {})([pixels, picture(80)]).shape == (2, 3, 32, 32)
    with pytest.raises(BundleError, match="only bicubic"):
        Preprocess.of(24, OPENAI | {"resample": 2})


def test_scores_are_the_model_s_cosines(tiny_clip: Path) -> None:
    judge, images = extractors.judge_images(str(tiny_clip))
    pictures, texts = [picture(32, 1), picture(32, 2)], ["red apple", "green heart"]
    model, tokenizer = (
        CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32),
        CLIPTokenizer.from_pretrained(tiny_clip),
    )
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=ids.input_ids, pixel_values=judge.preprocess(pictures))
    expected = (out.logits_per_image / model.logit_scale.exp()).detach().numpy()
    assert (judge.pictures(pictures) @ judge.texts(texts).T).numpy() == pytest.approx(expected, abs=1e-5)
    assert images(pictures).shape == (2, images.dimensions)


def test_folders_that_are_no_clip(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Judge.open(tmp_path / "nothing")
    write_json(tmp_path / "config.json", {"model_type": "clip"})
    with pytest.raises(BundleError, match="not readable as a CLIP"):
        Judge.open(tmp_path)


def test_the_interval_of_a_share() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.404, 0.596), abs=1e-3)
    assert wilson(1.0, 256) == pytest.approx((0.985, 1.0), abs=1e-3)


def test_retrieval_counts_identical_candidates_as_one() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.8, 0.1]])
    alike, distinct = np.array([0, 0, 1]), np.array([0, 1, 2])
    assert retrieval(scores, np.array([1, 2]), alike).top1 == 0.5
    assert retrieval(scores, np.array([1, 2]), distinct).top1 == 0.0
    assert retrieval(scores, np.array([1, 2]), distinct).top5 == 1.0


def test_identical_pictures_share_a_class() -> None:
    pixels = np.zeros((3, 2, 2, 3), np.uint8)
    pixels[1] = 7
    classes = identical(pixels)
    assert classes[0] == classes[2] != classes[1]
