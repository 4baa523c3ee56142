"""Tasks as draws; all are looked at before the first is learned: data that are not there, the same task in other words."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdc_edge.errors import BundleError, UsageError
from tests.train.sequences import within
from train import lessons
from train.continual import continual
from train.folders import load_pipeline
from train.lessons import Lesson, Task, joined
from train.sequences import ContinualConfig

SMILEYS = """
[[task]]
name = "smileys"
where = { group = "Smileys & Emotion" }
"""


def asked(config: ContinualConfig, folder: Path, second: str) -> ContinualConfig:
    """Smileys, then another task, in one step each."""
    (folder / "tasks.toml").write_text(f"{SMILEYS}\n[[task]]\n{second}\n")
    return replace(within(config, folder), tasks=folder / "tasks.toml", loop=replace(config.loop, steps=1))


def untouched(config: ContinualConfig) -> bool:
    return not any(path.exists() for path in (config.output_dir, config.run_dir, config.buffer / "replay.safetensors"))


@pytest.mark.parametrize("joint", [False, True])
def test_data_that_are_not_there_are_missed_before_the_first_task(
    joint: bool, sequence: ContinualConfig, tmp_path: Path
) -> None:
    config = replace(asked(sequence, tmp_path, 'name = "moths"\ndata = "no/moths/here"'), joint=joint)
    with pytest.raises(UsageError, match="no/moths/here: no such file"):
        continual(config)
    assert untouched(config)


def test_a_picture_that_cannot_be_read_is_met_before_the_first_task(
    sequence: ContinualConfig, food: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(food, tmp_path / "damaged")
    min(damaged.glob("*.png")).write_bytes(b"no picture")
    config = asked(sequence, tmp_path, f'name = "food"\ndata = "{damaged}"')
    with pytest.raises(BundleError, match=r"\.png"):
        continual(config)
    assert untouched(config)


def renamed(groups: Path, folder: Path, group: str) -> Path:
    """Another data set with the same pictures of a group, under other captions."""
    shutil.copytree(groups, folder)
    rows = [json.loads(line) for line in (groups / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {"text": f"a drawing of {row['text']}"} for row in rows if row["group"] == group]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in set(folder.glob("*.png")) - {folder / row["file_name"] for row in rows}:
        path.unlink()
    return folder


def test_the_same_pictures_by_another_filter_or_in_another_folder(
    sequence: ContinualConfig, groups: Path, tmp_path: Path
) -> None:
    other = renamed(groups, tmp_path / "other", "Smileys & Emotion")
    for second in (f'data = "{other}"', 'where = { group = ["Smileys & Emotion"] }'):
        config = asked(sequence, tmp_path, f'name = "faces"\n{second}')
        with pytest.raises(UsageError, match="'faces' is 'smileys' in other words, the same 6 pictures"):
            continual(config)
        assert untouched(config)


def test_a_task_of_the_buffer_is_known_again(learned: ContinualConfig, groups: Path, tmp_path: Path) -> None:
    """Also an earlier one, whose digest the student's checkpoint does not name."""
    faces = renamed(groups, tmp_path / "faces", "Smileys & Emotion")
    config = replace(within(learned, tmp_path), tasks=None, add=str(faces), model=learned.output_dir / "animals")
    shutil.copytree(learned.buffer, config.buffer)
    with pytest.raises(UsageError, match="'faces' is 'smileys' in other words"):
        continual(config)
    assert not config.output_dir.exists() and not config.run_dir.exists()


def test_the_last_task_is_known_again_where_nothing_is_kept(learned: ContinualConfig, tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text('[[task]]\nname = "beasts"\nwhere = { group = "Animals & Nature" }\n')
    config = replace(within(learned, tmp_path), tasks=tmp_path / "tasks.toml", model=learned.output_dir / "animals")
    with pytest.raises(UsageError, match="'beasts' is 'animals' in other words"):
        continual(replace(config, replay=replace(config.replay, replay_memory="0")))
    assert untouched(config)


def test_some_of_the_same_pictures_are_another_task(sequence: ContinualConfig, tmp_path: Path) -> None:
    config = asked(sequence, tmp_path, 'name = "all"\nwhere = { split = "train" }')
    continual(config)
    continual(config)  # and a sequence that is done is not its own repetition
    assert (config.output_dir / "all").exists()


def test_several_tasks_are_drawn_as_one(sequence: ContinualConfig) -> None:
    pipeline = load_pipeline(str(sequence.model))
    tasks = lessons.read(sequence.tasks)
    found = [Lesson.of(task, sequence.pictures, pipeline, 0.2) for task in tasks]
    both = joined(found)
    assert both.weights.shape == (36,) and both.weights.sum().item() == pytest.approx(12)
    index = torch.tensor([int(found[0].rows[0]), 18 + int(found[1].rows[2])])
    wanted = [found[0].source.latents.mean[index[:1]], found[1].source.latents.mean[index[1:] - 18]]
    assert torch.equal(both.latents.mean[index], torch.cat(wanted))
    numbers = both.numbers[both.choice.starts[index]]
    captions = [found[0].source.text[found[0].source.numbers[found[0].source.choice.starts[index[:1]]]],
                found[1].source.text[found[1].source.numbers[found[1].source.choice.starts[index[1:] - 18]]]]  # fmt: skip
    assert torch.equal(both.text[numbers], torch.cat(captions))


def test_a_task_weighs_as_many_pictures_as_are_drawn_alike(few: Path, sequence: ContinualConfig) -> None:
    """Those with a skin tone have a fixed share of its draws."""
    pictures = replace(sequence.pictures, data=str(few))
    lesson = Lesson.of(Task("all", None, {}), pictures, load_pipeline(str(sequence.model)), 0.2)
    toned = torch.tensor([bool(row["tone"]) for row in lesson.table.rows])
    weights = lesson.source.weights
    assert (weights[toned].sum() / weights.sum()).item() == pytest.approx(0.2)
    assert weights.sum().item() == pytest.approx(1 / (0.8**2 / (~toned).sum() + 0.2**2 / toned.sum()).item())
