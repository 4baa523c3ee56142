"""Whole runs on sixteen pictures with networks of a few thousand parameters: teacher, student, judge, evaluation."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.quality import Quality
from tests.train.test_loop import LAUNCH, ROOT
from train import ablation, recipes
from train.distill import distill
from train.evaluate import evaluate
from train.judge import train_judge
from train.recipes import (
    AblationConfig,
    AutoencoderConfig,
    ContrastiveConfig,
    DistillConfig,
    EvaluateConfig,
    JudgeConfig,
    LoopConfig,
    LossWeights,
    PicturesConfig,
    TeacherConfig,
    TeacherRecipe,
    UNetConfig,
)
from train.teacher import train_teacher

LOOP = LoopConfig(3, 4, 1e-3, warmup=1)
TOWERS = ContrastiveConfig(32, 1, 1, 32, 1, 1, 16, 16)
TINY = TeacherRecipe(
    merges=50,
    autoencoder=AutoencoderConfig(8, 16, (0, 0, 1, 1), (1, 1, 0, 0)),
    text=TOWERS,
    unet=UNetConfig((32, 32, 32), head_dim=16),
    autoencoder_loop=LOOP,
    text_loop=LOOP,
    unet_loop=LOOP,
)


def pictures(folder: Path) -> PicturesConfig:
    return PicturesConfig(str(folder), cache_dir=folder.parent / "cache")


@pytest.fixture(scope="module")
def teacher(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.TEACHERS, "emoji-64", lambda: TINY)
        train_teacher(TeacherConfig(folder / "out", folder / "run", pictures=pictures(few), log=folder / "log.md"))
    return folder


def test_a_teacher_is_a_folder_that_diffusers_loads(teacher: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(teacher / "out")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red apple", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3) and np.isfinite(picture).all()
    tokenizer = teacher / "out" / "tokenizer"
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in tokenizer.iterdir()}
    assert pipeline.tokenizer.model_max_length == 77


def test_its_weights_are_fp16_and_its_log_names_machine_and_settings(teacher: Path) -> None:
    with safe_open(teacher / "out" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    info = Checkpoint.open(teacher / "out").info
    assert info is not None and info.recipe == "teacher/emoji-64" and info.losses["steps"] == [3]
    assert info.sampling == TINY.sampling
    log = (teacher / "log.md").read_text()
    assert "torch 2." in log and Checkpoint.open(teacher / "out").id in log and '"merges": 50' in log


def test_an_existing_output_is_refused_before_any_work(teacher: Path, few: Path) -> None:
    with pytest.raises(UsageError, match="--force"):
        train_teacher(TeacherConfig(teacher / "out", teacher / "run2", pictures=pictures(few)))
    assert not (teacher / "run2").exists()


def test_a_teachers_run_folder_of_another_recipe_is_refused_before_any_work(teacher: Path, tmp_path: Path) -> None:
    nowhere = PicturesConfig(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"autoencoder\.safetensors belongs to a run with other settings"):
        train_teacher(TeacherConfig(tmp_path / "out", teacher / "run", pictures=nowhere))


def test_training_on_from_a_teacher_keeps_all_but_the_unet(teacher: Path, few: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.TEACHERS, "emoji-64", lambda: replace(TINY, unet_loop=replace(LOOP, learning_rate=1e-2)))
        config = TeacherConfig(
            tmp_path / "out", tmp_path, pictures=pictures(few), init=teacher / "out", steps=2, log=tmp_path / "log.md"
        )
        train_teacher(config)
    old, new = (StableDiffusionPipeline.from_pretrained(path) for path in (teacher / "out", tmp_path / "out"))
    for name in ("vae", "text_encoder"):
        before, after = getattr(old, name).state_dict(), getattr(new, name).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(old.unet.conv_in.weight, new.unet.conv_in.weight)


@pytest.fixture(scope="module")
def student(teacher: Path, few: Path) -> Path:
    config = DistillConfig(
        str(teacher / "out"),
        output_dir=teacher / "student",
        run_dir=teacher / "student-run",
        pictures=pictures(few),
        weights=LossWeights(soft=0.01),
        loop=replace(LOOP, precision="no"),
        log=teacher / "log.md",
    )
    distill(config)
    return teacher / "student"


def test_a_student_is_smaller_and_shares_the_rest(teacher: Path, student: Path) -> None:
    info = Checkpoint.open(student).info
    assert info is not None and info.teacher == Checkpoint.open(teacher / "out").id
    assert info.sampling == TINY.sampling
    assert set(info.losses["terms"]) == {"task", "out", "feat", "soft"}
    pipeline = StableDiffusionPipeline.from_pretrained(student)
    assert pipeline.unet.mid_block is None
    assert info.metrics["parameters"] < 0.6 * info.metrics["teacher_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("program", [["train.distill"], ["tests.train.divided", "train.distill"]])
def test_two_processes_distil_what_one_does(
    program: list[str], teacher: Path, student: Path, few: Path, tmp_path: Path
) -> None:
    """With gloo, each with all weights or with half of them: every loss term to 1e-4, in float32."""
    folders = ["-o", tmp_path / "out", "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    arguments = ["--teacher", teacher / "out", "--data", few, *folders]
    loop = [
        "--steps",
        3,
        "--batch-size",
        4,
        "--learning-rate",
        1e-3,
        "--optimizer",
        "adamw",
        "--warmup",
        1,
        "--soft",
        0.01,
        "--precision",
        "no",
    ]
    command = [*LAUNCH, "-m", "--", *program, *arguments, *loop, "--log", tmp_path / "log.md"]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two, one = (Checkpoint.open(folder).info for folder in (tmp_path / "out", student))
    for term, values in one.losses["terms"].items():
        assert two.losses["terms"][term] == pytest.approx(values, abs=1e-4)
    assert (tmp_path / "log.md").read_text().count("## ") == 1


def test_a_student_of_other_stages_cannot_be_trained_on(
    teacher: Path, tiny_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    config = DistillConfig(
        str(teacher / "out"), init=tiny_checkpoint, pictures=pictures(few), output_dir=tmp_path / "out"
    )
    with pytest.raises(UsageError, match=r"stages are \[16, 32\] wide, the teacher's \[32, 32, 32\]"):
        distill(replace(config, run_dir=tmp_path))


def test_pictures_while_it_trains(teacher: Path, few: Path, tmp_path: Path) -> None:
    loop = replace(LOOP, sample_every=3)
    config = DistillConfig(
        str(teacher / "out"), output_dir=tmp_path / "out", run_dir=tmp_path, pictures=pictures(few), loop=loop
    )
    distill(replace(config, log=tmp_path / "log.md"))
    (path,) = (tmp_path / "samples").iterdir()
    with Image.open(path) as sheet:
        assert path.name == "0000003.png" and sheet.size == (8 * 64, 2 * 64)


def test_a_truncated_teacher_is_refused(teacher: Path, few: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(teacher / "out", tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.safetensors: \d+ bytes, its header says"):
        distill(DistillConfig(str(broken), output_dir=tmp_path / "out", pictures=pictures(few)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weights": LossWeights(0.0, 0.0, 0.0)}, "every loss weight is 0"),
        ({"weights": LossWeights(out=-1.0)}, "--out is -1.0; it must be 0 or more"),
        ({"toned_share": -0.1}, "--toned-share is -0.1; it must be between 0 and 1"),
        ({"loop": replace(LOOP, learning_rate=0.0)}, "--learning-rate is 0.0"),
        ({"loop": replace(LOOP, accumulate=3)}, "does not divide into 3 parts"),
        ({"loop": replace(LOOP, precision="fp16")}, "--precision fp16: not on a cpu"),
    ],
)
def test_settings_are_refused_before_anything_is_computed(
    changes: dict, complaint: str, teacher: Path, few: Path, tmp_path: Path
) -> None:
    known = PicturesConfig(str(few), cache_dir=tmp_path / "cache")
    config = DistillConfig(str(teacher / "out"), output_dir=tmp_path / "out", run_dir=tmp_path / "run", pictures=known)
    with pytest.raises(UsageError, match=complaint):
        distill(replace(config, **changes))
    assert not (tmp_path / "cache").exists()


def test_a_run_folder_of_another_recipe_is_refused_before_anything_is_computed(
    teacher: Path, student: Path, few: Path, tmp_path: Path
) -> None:
    known = PicturesConfig(str(few), cache_dir=tmp_path / "cache")
    config = DistillConfig(
        str(teacher / "out"), output_dir=tmp_path / "out", run_dir=teacher / "student-run", pictures=known, loop=LOOP
    )
    with pytest.raises(UsageError, match="belongs to a run with other settings"):
        distill(config)
    assert not (tmp_path / "cache").exists()


def test_a_start_that_answers_something_else(
    tiny_checkpoint: Path, tiny_sd_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    config = DistillConfig(str(tiny_checkpoint), init=tiny_sd_checkpoint, output_dir=tmp_path / "out")
    for dry_run in (False, True):
        with pytest.raises(UsageError, match="its in_channels is 4, the model's is 16"):
            distill(replace(config, dry_run=dry_run, pictures=pictures(few)))
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    path = other / "scheduler" / "scheduler_config.json"
    write_json(path, read_json(path) | {"prediction_type": "epsilon"})
    with pytest.raises(UsageError, match="its prediction_type is epsilon, the model's is v_prediction"):
        distill(replace(config, init=other, pictures=pictures(few)))


def test_a_teacher_of_another_make_is_not_trained_on(tiny_sd_checkpoint: Path, few: Path, tmp_path: Path) -> None:
    config = TeacherConfig(tmp_path / "out", tmp_path / "run", pictures=pictures(few), init=tiny_sd_checkpoint)
    with pytest.raises(UsageError, match="has an AutoencoderKL and predicts epsilon; --init wants a teacher"):
        train_teacher(config)


@pytest.mark.parametrize("change", [{"checkpointing": True}, {"sample_every": 3}])
def test_a_judge_is_no_unet(change: dict, few: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of use to a U-Net only"):
        train_judge(JudgeConfig(tmp_path / "out", tmp_path, data=str(few), loop=replace(LOOP, **change)))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # diffusers' own call
def test_a_teacher_that_the_hub_does_not_give(few: Path, tmp_path: Path) -> None:
    config = DistillConfig("someone/sd-model", revision="0" * 40, output_dir=tmp_path / "out", pictures=pictures(few))
    for dry_run in (False, True):
        with pytest.raises(UsageError, match=r"someone/sd-model at 0+: not to be had from the hub"):
            distill(replace(config, dry_run=dry_run))


def test_a_hub_teacher_must_be_pinned(few: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--revision"):
        distill(DistillConfig("someone/sd-model", output_dir=tmp_path / "out", pictures=pictures(few)))


@pytest.fixture(scope="module")
def judge(teacher: Path, few: Path) -> Path:
    folder = teacher / "judge"
    config = JudgeConfig(folder, teacher / "judge-run", data=str(few), merges=50, towers=TOWERS, loop=LOOP)
    train_judge(replace(config, log=teacher / "judge.md"))
    return folder


@pytest.fixture(scope="module")
def tested(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures with skin tones set apart."""
    data = Path(shutil.copytree(few, tmp_path_factory.mktemp("tested") / "data"))
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {"split": "generalisation" if row["tone"] else "train"} for row in rows]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_the_judge_and_the_figures(student: Path, judge: Path, tested: Path, tmp_path: Path) -> None:
    asked = Quality(
        data=tested, judge=str(judge), count=3, steps=2, run_dir=tmp_path / "run", output=tmp_path / "f.json"
    )
    found = evaluate(EvaluateConfig(student, asked, sheet=tmp_path / "sheet.png"))
    assert json.loads((tmp_path / "f.json").read_text()) == found
    assert [(card["kind"], card["count"]) for card in found["cards"][:2]] == [("checkpoint", 3), ("checkpoint", 11)]
    drawn, ceiling = found["cards"][0]["numbers"], found["cards"][2]["numbers"]
    assert 0 <= drawn["by_text_top1"]["value"] <= drawn["by_text_top5"]["value"] <= 1
    assert drawn["kid"]["low"] <= drawn["kid"]["high"] and set(drawn) | {"vae_psnr"} == set(ceiling)
    assert found["cards"][2]["kind"] == "autoencoder" and ceiling["vae_psnr"]["value"] > 0
    assert (tmp_path / "sheet.png").stat().st_size > 500


def test_random_weights_and_no_teacher(teacher: Path, few: Path, tmp_path: Path) -> None:
    config = DistillConfig(
        str(teacher / "out"),
        fresh=True,
        output_dir=tmp_path / "out",
        run_dir=tmp_path,
        pictures=pictures(few),
        weights=LossWeights(1.0, 0.0, 0.0),
        loop=replace(LOOP, learning_rate=1e-9),
        log=tmp_path / "log.md",
    )
    distill(config)
    found, taught = (StableDiffusionPipeline.from_pretrained(path).unet for path in (tmp_path / "out", teacher / "out"))
    assert not torch.allclose(found.conv_in.weight, taught.conv_in.weight, atol=1e-3)
    assert set(Checkpoint.open(tmp_path / "out").info.losses["terms"]) == {"task"}
    with pytest.raises(UsageError, match="drop one of them"):
        distill(replace(config, init=teacher / "out"))


def test_an_ablation_is_a_table_and_goes_on_where_it_was_stopped(
    teacher: Path, judge: Path, tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "VARIANTS", (ablation.VARIANTS[0], ablation.VARIANTS[-1]))
    out, known = tmp_path / "out", pictures(tested)
    config = AblationConfig(out, str(teacher / "out"), pictures=known, loop=LOOP, judge=judge, captions=4)
    ablation.ablation(config)
    assert "kid" in read_json(out / "0" / "figures.json")["cards"][0]["not_measured"]  # one other picture is too few
    text = (out / "table.md").read_text()
    assert text.count("\n") == 4 and "| no teacher at all: task, random start | " in text
    (out / "1" / "figures.json").unlink()
    before = (out / "0" / "figures.json").stat().st_mtime_ns
    ablation.ablation(config)
    assert (out / "table.md").read_text() == text
    assert (out / "0" / "figures.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds an ablation with another loop, captions; choose another --output-dir"):
        ablation.ablation(replace(config, captions=5, loop=replace(LOOP, steps=5)))
