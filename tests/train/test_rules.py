"""The rules of a buffer: its own where there is one, and the same run however they are said."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kdc_edge.errors import UsageError
from kdc_edge.replay import About, read
from tests.train.sequences import TASKS, within
from train.buffer import tend
from train.continual import continual
from train.replay import Buffer, new_about
from train.rules import Rules, decided
from train.sequences import BufferConfig, ContinualConfig, ReplayConfig

OWN = Rules(20_000, "herding", "fp16")
UNSAID = ReplayConfig(pool=6, pool_steps=2)


def held() -> About:
    return new_about("vae", "vocabulary", (16, 8, 8), (), seed=7, limit=OWN.limit, policy=OWN.policy, store=OWN.store)


def test_a_new_buffer_has_what_was_said_and_else_the_defaults() -> None:
    assert decided(ReplayConfig()) == Rules() == Rules(2**26, "reservoir", "int8")
    assert decided(ReplayConfig("1KB", "random")) == Rules(1000, "random", "int8")


@pytest.mark.parametrize("said", [{}, {"replay_memory": "20 kb"}, {"policy": "herding", "store": "fp16"}])
def test_a_buffer_keeps_its_own_rules(said: dict[str, str]) -> None:
    assert decided(ReplayConfig(**said), held()) == OWN


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"replay_memory": "64MiB"}, "--replay-memory 20KB, not 64MiB"),
        ({"policy": "reservoir"}, "--policy herding, not reservoir"),
        ({"store": "int8"}, "give --store fp16"),
    ],
)
def test_a_rule_that_a_buffer_contradicts_is_refused_with_the_way_to_change_it(
    said: dict[str, str], wanted: str
) -> None:
    with pytest.raises(UsageError, match=rf"{wanted}.*python -m train.buffer --replay-memory"):
        decided(ReplayConfig(**said), held())


def test_one_more_task_leaves_the_rules_of_the_buffer(learned: ContinualConfig, food: Path, tmp_path: Path) -> None:
    """Seven bytes fewer than the defaults would do, another policy, another seed."""
    before = read(learned.buffer).about
    own = replace(before, limit=19_993, policy="class-balanced", seed=7)
    held = Buffer.open(learned.buffer)
    Buffer(replace(held.contents, about=own)).save(tmp_path / "buffer")
    config = replace(within(learned, tmp_path), tasks=None, add=str(food), model=learned.output_dir / "animals")
    with pytest.raises(UsageError, match="--replay-memory 19993B, not 20KB"):
        continual(config)
    assert not config.output_dir.exists() and read(tmp_path / "buffer").about == own
    continual(replace(config, replay=UNSAID))
    after = read(tmp_path / "buffer").about
    assert (after.limit, after.policy, after.store, after.seed) == (19_993, "class-balanced", "int8", 7)
    assert after.tasks == ("smileys", "animals", "food")


def test_a_default_that_is_said_and_one_that_is_not_are_one_run(sequence: ContinualConfig, tmp_path: Path) -> None:
    config = replace(within(sequence, tmp_path), replay=UNSAID, loop=replace(sequence.loop, steps=1))
    continual(config)
    stamps = {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*")}
    said = replace(UNSAID, replay_memory="65536KiB", policy="reservoir", store="int8")
    continual(replace(config, replay=said))
    shutil.rmtree(config.buffer)  # which is then built again
    continual(replace(config, replay=said))
    assert {path: path.stat().st_mtime_ns for path in config.output_dir.rglob("*")} == stamps


def test_a_sequence_goes_on_with_a_buffer_of_another_size(sequence: ContinualConfig, tmp_path: Path) -> None:
    """What is finished is not learned again; what follows is learned from what the buffer holds now."""
    config = replace(within(sequence, tmp_path), tasks=tmp_path / "tasks.toml")
    config.tasks.write_text(TASKS[: TASKS.rindex("[[task]]")])
    continual(config)
    config.tasks.write_text(TASKS)
    smileys = config.output_dir / "smileys"
    stamps = {path: path.stat().st_mtime_ns for path in smileys.rglob("*")}
    tend(BufferConfig(config.buffer, replay_memory="10KB"))
    with pytest.raises(UsageError, match="--replay-memory 10KB, not 20KB"):
        continual(config)
    continual(replace(config, replay=UNSAID))
    assert {path: path.stat().st_mtime_ns for path in smileys.rglob("*")} == stamps
    about = read(config.buffer).about
    assert about.limit == 10_000 and about.tasks == ("smileys", "animals")
