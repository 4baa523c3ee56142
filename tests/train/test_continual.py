"""Sequences of tasks of six pictures: what is kept, what is resumed, what is refused."""

import hashlib
import json
import shutil
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from kdc_edge.checkpoint import Checkpoint, Sampling
from kdc_edge.errors import MissingBackend, UsageError
from kdc_edge.files import locked, read_json, write_json
from kdc_edge.replay import hexadecimal, read
from tests import tiny
from tests.train.sequences import TASKS, within
from tests.train.test_student import SD1
from train import learner, updates
from train.continual import continual
from train.folders import load_pipeline, save_pipeline
from train.replay import Buffer
from train.retention import Retention
from train.sequences import ContinualConfig, RetentionWeights
from train.trainer import Trainer


@pytest.fixture
def config(sequence: ContinualConfig, tmp_path: Path) -> ContinualConfig:
    return within(sequence, tmp_path)


def ids(config: ContinualConfig) -> list[str]:
    return [Checkpoint.open(config.output_dir / name).id for name in ("smileys", "animals")]


def test_every_task_leaves_an_ordinary_student(learned: ContinualConfig) -> None:
    first, second = (Checkpoint.open(learned.output_dir / name).info for name in ("smileys", "animals"))
    assert (first.tasks, second.tasks) == (("smileys",), ("smileys", "animals"))
    assert second.teacher == ids(learned)[0] and first.teacher == Checkpoint.open(learned.model).id
    assert set(first.losses["terms"]) == {"new"} and set(second.losses["terms"]) == {"new", "replay", "previous"}
    assert len(second.metrics["changed"]) > 0.9 * second.metrics["tensors"]
    assert first.metrics["pool_cpu_seconds"] == 0 < second.metrics["pool_cpu_seconds"]
    pipeline = StableDiffusionPipeline.from_pretrained(learned.output_dir / "animals")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("monkey", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_the_buffer_names_the_pictures_it_has(learned: ContinualConfig, groups: Path) -> None:
    found = read(learned.buffer)
    assert found.about.tasks == ("smileys", "animals") and found.bytes <= 20_000
    rows = [json.loads(line) for line in (groups / "metadata.jsonl").read_text().splitlines()]
    files = {hashlib.sha256((groups / row["file_name"]).read_bytes()).hexdigest(): row for row in rows}
    pictures = hexadecimal(found.columns["pictures"])
    assert len(set(pictures)) == len(found) == 12
    for picture, caption, task in zip(pictures, found.columns["caption"], found.columns["task"], strict=True):
        assert files[picture]["text"] == found.about.captions[caption]
        assert files[picture]["group"].lower().startswith(found.about.tasks[task])


def test_a_run_killed_within_a_task_goes_on_as_if_it_had_not_been(
    config: ContinualConfig, learned: ContinualConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance
    monkeypatch.setattr(learner, "fit", partial(learner.fit, save_every=0.0, log_every=1))

    def killed(self: Trainer, loss: object) -> dict:
        if self.step == 4 and self.key and (config.output_dir / "smileys").exists():
            raise KeyboardInterrupt
        return advance(self, loss)

    monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        continual(config)
    assert not (config.output_dir / "animals").exists() and read(config.buffer).about.tasks == ("smileys",)
    monkeypatch.setattr(Trainer, "advance", advance)
    continual(config)
    for name in ("smileys", "animals"):
        resumed, unbroken = (load_pipeline(str(c.output_dir / name)).unet.state_dict() for c in (config, learned))
        assert all(torch.equal(value, unbroken[key]) for key, value in resumed.items())


def test_a_run_killed_between_checkpoint_and_buffer_takes_in_what_is_missing(
    config: ContinualConfig, learned: ContinualConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Buffer.save

    def killed(self: Buffer, folder: Path) -> Buffer:
        if self.about.tasks == ("smileys", "animals"):
            raise KeyboardInterrupt
        return save(self, folder)

    monkeypatch.setattr(Buffer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        continual(config)
    monkeypatch.undo()
    stamps = {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*.safetensors")}
    continual(config)
    assert {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*.safetensors")} == stamps
    assert Buffer.open(config.buffer).digest() == Buffer.open(learned.buffer).digest()


def test_one_more_task(learned: ContinualConfig, food: Path, tmp_path: Path) -> None:
    buffer = shutil.copytree(learned.buffer, tmp_path / "buffer")
    config = replace(
        within(learned, tmp_path), tasks=None, add=str(food), model=learned.output_dir / "animals", buffer=buffer
    )
    continual(config)
    assert Checkpoint.open(config.output_dir / "food").info.tasks == ("smileys", "animals", "food")
    assert read(buffer).about.tasks == ("smileys", "animals", "food")
    with pytest.raises(UsageError, match="no replay buffer; --add goes on with one"):
        continual(replace(config, buffer=tmp_path / "none", output_dir=tmp_path / "other"))
    with pytest.raises(UsageError, match=r"is of smileys, animals, food; the student has learned smileys, animals"):
        continual(replace(config, output_dir=tmp_path / "other"))


def test_naive_joint_and_data_free(config: ContinualConfig, tmp_path: Path) -> None:
    def terms(folder: Path, **changes: object) -> set[str]:
        chosen = within(replace(config, loop=replace(config.loop, steps=2), **changes), folder)
        continual(chosen)
        info = Checkpoint.open(chosen.output_dir / "animals").info
        assert info.tasks == ("smileys", "animals")
        return set(info.losses["terms"])

    assert terms(tmp_path / "naive", replay=replace(config.replay, replay_memory="0")) == {"new"}
    assert terms(tmp_path / "joint", joint=True) == {"new"}
    assert not (tmp_path / "naive" / "buffer").exists() and not (tmp_path / "joint" / "buffer").exists()
    settings = [Checkpoint.open(tmp_path / name / "out" / "animals").info.config for name in ("naive", "joint")]
    assert [found["replay"] for found in settings] == [found["weights"] for found in settings] == [None, None]
    data = [found["data"] for found in settings]
    assert len(data[0]) == 1 and len(data[1]) == 2 and data[1][1] == data[0][0]
    assert terms(tmp_path / "free", replay=replace(config.replay, store="captions")) == {"new", "previous"}
    assert len(read(tmp_path / "free" / "buffer")) == 0


def test_a_teacher_that_knows_the_tasks(config: ContinualConfig, tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = RetentionWeights(0.0, 0.0, 1.0)
    continual(replace(config, weights=weights, teacher=tiny_checkpoint, loop=replace(config.loop, steps=1)))
    assert set(Checkpoint.open(config.output_dir / "animals").info.losses["terms"]) == {"new", "teacher"}
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    pipeline = load_pipeline(str(tiny_checkpoint))
    pipeline.vae.decoder.layers[0].bias.data += 1
    pipeline.save_pretrained(other)
    with pytest.raises(UsageError, match="its autoencoder, tokenizer or text encoder is not the student's"):
        continual(within(replace(config, teacher=other), tmp_path / "again"))


@pytest.mark.parametrize("update", ["cross-attention", "lora"])
def test_an_update_touches_few_tensors(update: str, config: ContinualConfig) -> None:
    if update == "lora":
        pytest.importorskip("peft")
    continual(replace(config, update=update, rank=2))
    info = Checkpoint.open(config.output_dir / "animals").info
    changed = info.metrics["changed"]
    assert 0 < len(changed) < 0.2 * info.metrics["tensors"]
    wanted = ".attn2." if update == "cross-attention" else ".to_"
    assert all(wanted in name for name in changed)
    before, after = (load_pipeline(str(config.output_dir / name)).unet.state_dict() for name in ("smileys", "animals"))
    assert before.keys() == after.keys()
    assert [name for name, value in after.items() if not torch.equal(value, before[name])] == changed


def test_lora_without_peft_names_the_extra(config: ContinualConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = load_pipeline(str(config.model)).unet
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingBackend, match=r"--update lora needs peft .*pip install 'kdc-edge\[train\]'"):
        updates.restrict(unet, "lora", 2, 0)


def test_two_runs_on_one_buffer(config: ContinualConfig) -> None:
    config.buffer.mkdir()
    with locked(config.buffer), pytest.raises(UsageError, match="in use by another process"):
        continual(config)
    assert not config.output_dir.exists()


def test_a_plan_needs_no_weights(config: ContinualConfig, tmp_path: Path) -> None:
    write_json(tmp_path / "sd" / "unet" / "config.json", SD1)
    found = continual(replace(config, model=tmp_path / "sd", dry_run=True))
    assert (found["tasks"], found["buffer_bytes"], found["estimated"]["steps"]) == (2, 20_000, 12)
    assert found["estimated"]["hours"] > 0 and found["estimated"]["weights_bytes"] > 4 * 859_520_964 * 4
    assert not config.output_dir.exists() and not config.buffer.exists()


BAD = {
    "no picture with group 'Animal & Nature'; did you mean 'Animals & Nature'": ("Animals", "Animal"),
    "no column 'grup' in the data": ("{ group = [", "{ grup = ["),
    "'smileys' is there twice": ('"animals"', '"smileys"'),
    "the same name or the same pictures": ('["Animals & Nature"]', '"Smileys & Emotion"'),
    "has a field 'were' that Task does not know; did you mean 'where'": ("where = { group = [", "were = { group = ["),
    "becomes a folder's": ('"animals"', '"../animals"'),
    "tasks.toml: ": ("[[task]]", "[[task"),
}


@pytest.mark.parametrize("message", BAD)
def test_tasks_that_cannot_be_meant(message: str, config: ContinualConfig, tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(TASKS.replace(*BAD[message]))
    with pytest.raises(UsageError, match=message):
        chosen = replace(config, tasks=tmp_path / "tasks.toml", loop=replace(config.loop, steps=1))
        continual(chosen)
    assert not config.output_dir.exists() and not config.run_dir.exists(), "before the first task"


def test_what_cannot_be_learned(config: ContinualConfig, learned: ContinualConfig, tmp_path: Path) -> None:
    wrong = {
        "--tasks FILE for a sequence, or --add": replace(config, tasks=None),
        "no such file": replace(config, tasks=tmp_path / "none.toml"),
        "'smileys' was learned before": replace(config, model=learned.output_dir / "smileys"),
        "with one item it takes": replace(config, replay=replace(config.replay, replay_memory="1KB")),
        "no number of bytes": replace(config, replay=replace(config.replay, replay_memory="much")),
        "--replay-share": replace(config, replay=replace(config.replay, replay_share=0.1)),
        "give --store int8": replace(
            within(learned, tmp_path), buffer=learned.buffer, replay=replace(learned.replay, store="fp16")
        ),
        "is of smileys, animals; the student has learned nothing": replace(
            within(config, tmp_path / "new"), buffer=learned.buffer
        ),
    }
    for message, chosen in wrong.items():
        with pytest.raises(UsageError, match=message):
            continual(replace(chosen, loop=replace(chosen.loop, steps=1)))
    (tmp_path / "empty").mkdir()
    naive = replace(config.replay, replay_memory="0")
    with pytest.raises(Exception, match=r"empty") as caught:
        continual(within(replace(config, tasks=None, add=str(tmp_path / "empty"), replay=naive), tmp_path / "none"))
    assert getattr(caught.value, "exit_code", None) in (2, 5)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_batch_too_small_to_replay_in_is_refused_before_the_first_task(
    dry_run: bool, config: ContinualConfig, tmp_path: Path
) -> None:
    small = replace(within(config, tmp_path), loop=replace(config.loop, batch_size=4, accumulate=2), dry_run=dry_run)
    with pytest.raises(UsageError, match=r"--replay-share 0.5 of a batch of 4 is 2 rows; it takes 4 or more"):
        continual(small)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_or_a_run_of_other_settings_is_left_alone(learned: ContinualConfig, tmp_path: Path) -> None:
    other = replace(learned, loop=replace(learned.loop, learning_rate=1e-4))
    with pytest.raises(UsageError, match="was made with other settings"):
        continual(other)
    with pytest.raises(UsageError, match="holds a run with other settings"):
        continual(replace(other, output_dir=tmp_path, buffer=tmp_path / "buffer"))


@pytest.mark.parametrize("part", ["autoencoder", "tokenizer"])
def test_a_buffer_of_other_networks_is_refused_and_unharmed(
    part: str, learned: ContinualConfig, tmp_path: Path
) -> None:
    info = Checkpoint.open(learned.output_dir / "animals").info
    pipeline = load_pipeline(str(learned.output_dir / "animals"))
    if part == "autoencoder":
        pipeline.vae.encoder.layers[0].bias.data += 1
    else:
        pipeline.tokenizer = tiny.train_tokenizer(["something else"], merges=3)
    save_pipeline(tmp_path / "model", pipeline, info)
    before = Buffer.open(learned.buffer).digest()
    config = replace(within(learned, tmp_path), tasks=None, add=learned.pictures.data, model=tmp_path / "model")
    with pytest.raises(UsageError, match=f"was built with the {part} "):
        continual(replace(config, buffer=learned.buffer))
    assert Buffer.open(learned.buffer).digest() == before


def test_stored_rows_stay_on_disk(config: ContinualConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read as they are drawn, and a digest of all makes no copy of them."""
    seen = []
    build = learner.continual_loss

    def watched(new: object, retention: Retention | None, *rows: int) -> object:
        if retention is not None:
            seen.append(retention.stored.latents.mean)
        return build(new, retention, *rows)

    monkeypatch.setattr(learner, "continual_loss", watched)
    continual(replace(config, loop=replace(config.loop, steps=1)))
    (rows,) = seen
    assert isinstance(rows.values, np.memmap) and not rows.values.flags.owndata
    held = Buffer.open(config.buffer)
    tracemalloc.start()
    held.digest()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < held.contents.columns["latents"].nbytes


@pytest.mark.parametrize("reading", [{"flips": True}, {"cache_dtype": "fp32"}])
def test_pictures_read_in_another_way_are_another_run(reading: dict, config: ContinualConfig, tmp_path: Path) -> None:
    """With mirrored pictures the buffer has the same latents as without, and is replayed as it is."""
    config = replace(config, loop=replace(config.loop, steps=1))
    other = within(replace(config, pictures=replace(config.pictures, **reading)), tmp_path / "other")
    continual(config)
    continual(other)
    latents = [read(c.buffer).columns["latents"].astype(int) for c in (config, other)]
    assert abs(latents[0] - latents[1]).max() <= 1
    mixed = within(config, tmp_path / "other")
    with pytest.raises(UsageError, match="out/smileys was made with other settings"):
        continual(mixed)
    shutil.rmtree(mixed.output_dir)
    shutil.rmtree(mixed.buffer)
    with pytest.raises(UsageError, match="state/smileys holds a run with other settings"):
        continual(mixed)


def test_a_student_in_float32_goes_on_with_its_buffer(config: ContinualConfig, tmp_path: Path) -> None:
    """Its autoencoder and text encoder are rounded before anything is made of them, not when they are saved."""
    pipeline = load_pipeline(str(config.model))
    frozen = (pipeline.vae, pipeline.text_encoder)
    for parameter in (parameter for module in frozen for parameter in module.parameters()):
        parameter.data *= 1 + 1e-4
    pipeline.save_pretrained(tmp_path / "float32")
    pictures = replace(config.pictures, cache_dir=tmp_path / "cache")
    config = replace(config, model=tmp_path / "float32", pictures=pictures, loop=replace(config.loop, steps=1))
    continual(replace(config, teacher=tmp_path / "float32"))
    assert read(config.buffer).about.tasks == ("smileys", "animals")
    saved = load_pipeline(str(config.output_dir / "animals"))
    assert read(config.buffer).about.vae == learner.Networks.of(saved).vae
    assert len(list(config.pictures.cache_dir.glob("*/pictures.json"))) == 1, "the same latents for both tasks"


def test_a_few_step_student_is_not_taught(learned: ContinualConfig, tmp_path: Path) -> None:
    shutil.copytree(learned.model, tmp_path / "few")
    write_json(
        tmp_path / "few" / "kdc.json",
        {"format": 1, "recipe": "fewstep/progressive", "config": {}, "sampling": {"steps": 4, "guidance": 1.0}},
    )
    assert Checkpoint.open(tmp_path / "few").info.sampling == Sampling(4, 1.0)
    with pytest.raises(UsageError, match="distilled to 4 steps"):
        continual(replace(within(learned, tmp_path), model=tmp_path / "few"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_sequence_on_a_gpu(config: ContinualConfig) -> None:
    continual(replace(config, loop=replace(config.loop, precision="bf16")))
    assert Checkpoint.open(config.output_dir / "animals").info.tasks == ("smileys", "animals")
    assert read_json(config.run_dir / "animals" / "settings.json")["loop"]["precision"] == "bf16"
