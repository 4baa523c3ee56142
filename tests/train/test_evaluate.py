"""`train.evaluate`: a checkpoint against its bundle, and the work shared among processes."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kdc_edge.quality import Quality
from tests.train.test_loop import LAUNCH, ROOT
from train.evaluate import evaluate
from train.recipes import EvaluateConfig


@pytest.fixture
def asked(tiny_gallery: Path, tiny_clip: Path, tmp_path: Path) -> Quality:
    sets = ("trained", "generalisation")
    return Quality(sets, data=tiny_gallery, judge=str(tiny_clip), count=6, steps=2, batch=4, run_dir=tmp_path / "run")


def test_a_checkpoint_is_as_good_as_its_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, asked: Quality, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise at every step, also where the sampler adds some: pictures are equal to rounding."""
    pytest.importorskip("torchmetrics")
    against = replace(asked, against=tiny_bundle, sampler="lcm", band=0.02, force=True)
    found = evaluate(EvaluateConfig(tiny_checkpoint, against))
    assert found["verdict"]["outcome"] == "equivalent"
    assert found["cards"][0]["numbers"]["psnr"]["low"] > 50
    assert {change["band_from"] for change in found["verdict"]["changes"]} == {"given"}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tiny_checkpoint: Path, asked: Quality, tmp_path: Path) -> None:
    flags = ["--data", asked.data, "--judge", asked.judge, "--count", "6", "--steps", "2", "--batch", "2"]
    out = ["--run-dir", tmp_path / "two", "-o", tmp_path / "two.json"]
    command = [*LAUNCH, "-m", "train.evaluate", "--model", tiny_checkpoint, *flags, *out]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two.json").read_text())
    one = evaluate(EvaluateConfig(tiny_checkpoint, replace(asked, batch=2)))
    for a, b in zip(two["cards"], one["cards"], strict=True):
        assert {name: n["value"] for name, n in a["numbers"].items()} == pytest.approx(
            {name: n["value"] for name, n in b["numbers"].items()}, rel=1e-3, abs=1e-3
        )
