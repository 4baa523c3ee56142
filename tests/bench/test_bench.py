"""Comparing bundles."""

import json
from pathlib import Path

import pytest

from bench.compare import CompareConfig, compare
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError


def test_a_bundle_against_itself_is_as_fast(hand_bundle: Path, tmp_path: Path) -> None:
    data = compare(CompareConfig(hand_bundle, hand_bundle, samples=30, output=tmp_path / "timings.json"))
    assert set(data["results"]) == {"text_encoder", "unet", "vae_decoder", "picture"}
    assert data["bundles"]["a"]["id"] == Bundle.open(hand_bundle).id
    assert json.loads((tmp_path / "timings.json").read_text()) == data
    result = data["results"]["unet"]
    assert len(result["a"]["wall_s"]) == len(result["b"]["wall_s"]) == 30
    assert result["low"] <= result["ratio"] <= result["high"]
    assert 0.4 < result["ratio"] < 2.5


def test_too_few_samples_for_an_interval(hand_bundle: Path) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        compare(CompareConfig(hand_bundle, hand_bundle, samples=2))
