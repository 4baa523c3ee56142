"""A reduced comparison: two tasks, two methods and training from scratch, networks of a few thousand parameters."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.replay import hexadecimal
from tests.train.test_loop import ROOT
from train.appraisal import Examiner
from train.comparison import comparison, keep_settings, seeds
from train.folders import as_stored, load_pipeline
from train.lessons import Lesson
from train.recipes import LoopConfig, PicturesConfig, UNetConfig
from train.replay import HEADER, RECORD, Buffer, caption_bytes, item_bytes, new_about
from train.rules import rules_of
from train.sequences import METHODS, ComparisonConfig, ReplayConfig
from train.trial import Trial

BASE = """
[[task]]
name = "smileys"
where = { group = "Smileys & Emotion" }
"""
TASKS = """
[[task]]
name = "animals"
where = { group = "Animals & Nature" }

[[task]]
name = "food"
where = { group = "Food & Drink" }
"""


@pytest.fixture(scope="module")
def config(
    groups: Path, tiny_checkpoint: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> ComparisonConfig:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "base.toml").write_text(BASE)
    (folder / "tasks.toml").write_text(TASKS)
    return ComparisonConfig(
        output_dir=folder / "out",
        methods=("naive", "replay"),
        model=tiny_checkpoint,
        tasks=folder / "tasks.toml",
        base=folder / "base.toml",
        pictures=PicturesConfig(str(groups), cache_dir=folder / "cache"),
        unet=UNetConfig((32, 32), (False, True), 1, 16),
        base_steps=4,
        loop=LoopConfig(3, 4, 1e-3, warmup=1, ema=0.9),
        replay=ReplayConfig("20KB", pool=4, pool_steps=2),
        judge=str(tiny_clip),
        prompts=3,
        draw_steps=2,
        strip=1,
        workers=1,
    )


@pytest.fixture(scope="module")
def first(config: ComparisonConfig) -> dict:
    return comparison(config)


def test_two_methods_two_tasks(config: ComparisonConfig, first: dict) -> None:
    found = read_json(config.output_dir / "results.json")
    assert set(found["seeds"]["0"]) == set(found["methods"]) == {"naive", "replay", "scratch"}
    for method in ("naive", "replay"):
        scores = found["seeds"]["0"][method]
        assert np.shape(scores["top1"]) == np.shape(scores["kid"]) == (3, 2) and scores["count"] == [3, 3]
        assert all(value in (0.0, 1 / 3, 2 / 3, 1.0) for row in scores["top1"] for value in row)
        assert len(scores["seconds"]) == 2 and min(scores["seconds"]) > 0
    naive, replay = (found["seeds"]["0"][method] for method in ("naive", "replay"))
    assert naive["kid"][:2] == replay["kid"][:2], "the first task has nothing to replay"
    assert naive["kid"][2] != replay["kid"][2]
    measured = [aim["value"] is not None for aim in first["aims"]]
    assert not (measured[0] or measured[2] or measured[5]), "joint, pixel replay and int8 were not asked for"
    assert measured[3] and first["aims"][3]["value"]["mean"] > 0


def test_the_page_holds_everything_it_shows(config: ComparisonConfig, first: dict) -> None:
    text = Path(first["page"]).read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "$" not in text
    for word in ("naive", "replay", "scratch", "after food", "forward transfer", "animals", "not measured"):
        assert word in text
    assert text.count("data:image/png;base64,") == 4, "two methods, two tasks"
    assert text.count("<polyline") == 2 and text.count('class="score"') == 2 * 3 * 2
    with Image.open(config.output_dir / "seed-0" / "exams" / "replay-food.png") as strip:
        assert strip.size == (2 * 64, 64)


def test_a_seed_more_adds_to_what_is_there(config: ComparisonConfig, first: dict) -> None:
    before = {path: path.stat().st_mtime_ns for path in (config.output_dir / "seed-0").rglob("*.safetensors")}
    more = comparison(replace(config, loop=replace(config.loop, seed=1), methods=("naive",), scratch=False))
    assert Path(more["page"]).read_text(encoding="utf-8").count("<polyline") == 1, "means over other seeds are left out"
    found = read_json(config.output_dir / "results.json")
    assert set(found["seeds"]) == {"0", "1"}
    assert (
        found["methods"]["naive"]["kid"]["average"]["seeds"]
        == 2
        > found["methods"]["replay"]["kid"]["average"]["seeds"]
    )
    low, mean, high = (found["methods"]["naive"]["kid"]["average"][name] for name in ("low", "mean", "high"))
    assert low < mean < high
    assert {path: path.stat().st_mtime_ns for path in (config.output_dir / "seed-0").rglob("*.safetensors")} == before
    with pytest.raises(UsageError, match="holds seeds with other base_steps"):
        comparison(replace(config, base_steps=5))


def test_seeds_that_ran_elsewhere_count_from_results_json_alone(config: ComparisonConfig, tmp_path: Path) -> None:
    """As do methods of a seed that ran here, what ran here coming first; other settings are refused as a folder's are."""
    elsewhere = {"10": {"naive": 1}, "2": {"naive": 2, "replay": 6}, "0": {"naive": 3}}
    settings = keep_settings(replace(config, output_dir=tmp_path / "other")) | {"base_steps": 5}
    write_json(tmp_path / "results.json", {"seeds": elsewhere, "settings": settings})
    (tmp_path / "seed-2").mkdir()
    write_json(tmp_path / "seed-2" / "result.json", {"naive": 5, "joint": 4})
    found = [("0", {"naive": 3}), ("2", {"naive": 5, "replay": 6, "joint": 4}), ("10", {"naive": 1})]
    assert list(seeds(tmp_path).items()) == found
    with pytest.raises(UsageError, match="holds seeds with other base_steps"):
        keep_settings(replace(config, output_dir=tmp_path))
    assert not (tmp_path / "settings.json").exists()


def test_two_workers_find_what_one_does(config: ComparisonConfig, first: dict, tmp_path: Path) -> None:
    comparison(replace(config, output_dir=tmp_path, workers=2, methods=("naive",)))
    one, two = (read_json(folder / "results.json")["seeds"]["0"] for folder in (config.output_dir, tmp_path))
    assert set(two) == {"naive", "scratch"}
    for method in two:
        assert two[method]["top1"] == one[method]["top1"]
        assert np.allclose(two[method]["kid"], one[method]["kid"], rtol=1e-3)


def test_an_exam_is_read_back_for_the_same_model_and_way_alone(
    config: ComparisonConfig, trial: Trial, tmp_path: Path
) -> None:
    """Another model under the name, another judge, more prompts, more steps or other pictures are judged anew."""

    def stamp() -> int:
        return result.stat().st_mtime_ns

    def examiner(**other: Any) -> Examiner:
        way = {"tasks": trial.pictures, "judge": config.judge, "prompts": 2, "steps": 1, "strip": 1} | other
        return Examiner(**way)

    model, result = shutil.copytree(config.model, tmp_path / "model"), tmp_path / "exam.json"
    found, first = examiner().examine(model, result), stamp()
    assert examiner().examine(model, result) == found and stamp() == first
    judge = shutil.copytree(config.judge, tmp_path / "judge")
    weights = load_file(judge / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, judge / "model.safetensors", {"format": "pt"})
    fewer = {name: pictures.select_index(np.arange(5)) for name, pictures in trial.pictures.items()}
    for other in ({"judge": str(judge)}, {"prompts": 3}, {"steps": 2}, {"tasks": fewer}):
        before = stamp()
        examiner(**other).examine(model, result)
        assert stamp() > before, f"judged anew with another {next(iter(other))}"
    again = examiner().examine(model, result)
    assert again == found
    unet = load_pipeline(str(model)).unet
    unet.conv_out.bias.data += 1
    unet.half().save_pretrained(model / "unet")
    assert examiner().examine(model, result)["model"] != found["model"]


KILLED = "import pickle, sys; from train.comparison import comparison; comparison(pickle.load(sys.stdin.buffer))"


@pytest.mark.slow
@pytest.mark.parametrize("reached", ["replay/checkpoints/animals", "exams/naive-food.json"])
def test_a_comparison_that_was_killed_ends_as_if_it_had_not_been(
    reached: str, config: ComparisonConfig, first: dict, tmp_path: Path
) -> None:
    """By SIGKILL, between the tasks of a method or between methods; but for what it took."""
    config = replace(config, output_dir=tmp_path)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, env=env, cwd=ROOT)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(config))
    process.stdin.close()
    while not (tmp_path / "seed-0" / reached).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "results.json").exists()
    comparison(config)
    folders = (tmp_path, Path(first["page"]).parent)
    killed, unbroken = (read_json(folder / "seed-0" / "result.json") for folder in folders)
    assert [{**scores, "seconds": 0} for scores in killed.values()] == [{**s, "seconds": 0} for s in unbroken.values()]
    assert killed.keys() == unbroken.keys()


@pytest.mark.slow
def test_int8_bundles_are_judged_beside_their_checkpoints(
    config: ComparisonConfig, first: dict, tmp_path: Path
) -> None:
    """Replay's checkpoints as bundles of their own, drawn by onnxruntime, in the same matrix and with an aim of their own."""
    found = comparison(replace(config, output_dir=tmp_path, methods=("replay",), scratch=False, int8=True))
    scores = read_json(tmp_path / "seed-0" / "result.json")
    assert set(scores) == {"replay", "int8-bundles"}
    checkpoints, bundles = scores["replay"], scores["int8-bundles"]
    assert bundles["top1"][0] == checkpoints["top1"][0]
    assert np.shape(bundles["kid"]) == (3, 2) and bundles["kid"] != checkpoints["kid"]
    assert found["aims"][5]["value"] is not None
    for task in ("animals", "food"):
        bundle = Bundle.open(tmp_path / "seed-0" / "int8" / task)
        assert bundle.manifest.precision == "int8"
        assert read_json(tmp_path / "seed-0" / "exams" / f"int8-bundles-{task}.json")["model"] == bundle.id
        checkpoint = Checkpoint.open(tmp_path / "seed-0" / "replay" / "checkpoints" / task).id
        assert bundle.manifest.provenance.checkpoint == checkpoint


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workers": 0}, "--workers is 0"),
        ({"strip": 0}, "--strip 0"),
        ({"methods": ("naive",), "int8": True}, "--int8"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(config: ComparisonConfig, wrong: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(config, **wrong)


def test_a_refused_comparison_leaves_the_folder_to_the_next(config: ComparisonConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="go together"):
        comparison(replace(config, output_dir=tmp_path / "out", base=None))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trial(config: ComparisonConfig) -> Trial:
    return Trial(config)


def test_methods_differ_in_what_they_are_named_after(trial: Trial) -> None:
    chosen = {name: trial._method(name) for name in METHODS}
    assert {name: rules_of(settings).limit for name, settings in chosen.items()} == {
        "naive": 0, "joint": 0, "replay": 20_000, "replay-no-distillation": 20_000,
        "pixel-replay": trial._room_for_pixels(20_000),
    }  # fmt: skip
    assert [name for name, settings in chosen.items() if settings.joint] == ["joint"]
    assert len({settings.loop for settings in chosen.values()}) == 1
    undistilled = [name for name, settings in chosen.items() if not settings.weights.previous_weight]
    assert undistilled == ["replay-no-distillation", "pixel-replay"]


def test_variants_are_replay_but_for_one_setting(config: ComparisonConfig, trial: Trial) -> None:
    chosen = ("replay-memory=13KB", "policy=herding", "store=captions", "update=lora")
    varied, usual = Trial(replace(config, variants=chosen)), trial._method("replay")
    found = {name: varied._method(name) for name in ("replay-13KB", "replay-herding", "replay-captions", "replay-lora")}
    folders = {"run_dir": usual.run_dir, "output_dir": usual.output_dir, "buffer": usual.buffer, "log": usual.log}
    memory, policy, store, update = (replace(settings, **folders) for settings in found.values())
    assert memory == replace(usual, replay=replace(usual.replay, replay_memory="13000"))
    assert policy == replace(usual, replay=replace(usual.replay, policy="herding"))
    assert store == replace(usual, replay=replace(usual.replay, store="captions"))
    assert update == replace(usual, update="lora")


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        ("replay-memory=some", "is no number of bytes"),
        ("policy=newest", "policy=newest: one of replay-memory=BYTES, policy=reservoir"),
        ("13KB", "--variants 13KB: one of"),
    ],
)
def test_a_variant_that_is_none(variant: str, complaint: str, config: ComparisonConfig) -> None:
    with pytest.raises(UsageError, match=complaint):
        Trial(replace(config, variants=(variant,)))


def test_bundles_are_not_calibrated_on_what_is_judged(trial: Trial) -> None:
    examiner = trial.examiner
    asked = {prompt for exam in examiner.exams for prompt in exam.prompts}
    assert len(asked) == 6 and len(examiner.others(4)) == 4 and len(examiner.others(100)) == 6
    assert not asked & set(examiner.others(100))
    every = Examiner(trial.pictures, trial.config.judge, prompts=6, steps=2, strip=1)
    assert every.others(100) == every.captions, "where all are judged there are no others"


def test_pixel_replay_has_the_bytes_of_latent_replay(trial: Trial) -> None:
    """The pictures that are kept after each task fit as WebP, with their captions; of one more, some task's would not."""
    memory, pipeline = 20_000, as_stored(load_pipeline(str(trial.config.model)))
    offers = [Lesson.of(task, trial.config.pictures, pipeline, 0.0).offer() for task in trial.tasks]
    begun, sizes = trial._pixel_buffer(pipeline), trial.webp_sizes
    rows = [row for pictures in trial.pictures.values() for row in pictures.rows]
    assert list(sizes) == [row["sha256"] for row in rows] and min(sizes.values()) > 500

    def largest(limit: int) -> int:
        buffer, found = Buffer.empty(replace(begun, limit=limit)), []
        for offer in offers:
            buffer = buffer.take(offer)
            pictures = hexadecimal(buffer.contents.columns["pictures"])
            texts = sum(caption_bytes(text) for text in (*buffer.about.captions, *buffer.about.tasks))
            found.append(HEADER + texts + sum(sizes[picture] + RECORD for picture in pictures))
        return max(found)

    limit = trial._room_for_pixels(memory)
    assert largest(limit) <= memory < largest(limit + item_bytes(begun))
    assert trial._method("pixel-replay").replay.store == begun.store == "fp16"
    with pytest.raises(UsageError, match="there is no picture as lossless WebP"):
        trial._room_for_pixels(3000)


def test_pixels_get_the_room_their_webp_takes(trial: Trial) -> None:
    """As many fp16 latents fit into it as lossless WebP into the bytes."""
    memory = 40_000
    pixels = [picture for pictures in trial.pictures.values() for picture in pictures.pixels]
    total = 0
    for picture in pixels:
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "WEBP", lossless=True, quality=100, method=6)
        assert (np.asarray(Image.open(buffer)) == picture).all()
        total += buffer.tell()
    items = (memory - HEADER) / (total / len(pixels) + RECORD)
    about = new_about("v", "t", (16, 8, 8), (), store="fp16", limit=0, policy="reservoir", seed=0)
    assert (trial._room_for_pixels(memory) - HEADER) / item_bytes(about) == pytest.approx(items, rel=0.1)
