"""Teach a student one task after the other without its forgetting the earlier ones: latent replay from a bounded memory.

    python -m train.continual --model assets/emoji-64/student --tasks tasks.toml --replay-memory 64MiB
    python -m train.continual --model runs/continual/checkpoints/flowers --add path/to/moths

A checkpoint for each task, an ordinary student each; a run that was killed goes on in the middle of its task. What is kept
of a task are latents and captions, no pixels (`train.replay`); what a student is held to says `train.retention`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc_edge import command
from kdc_edge.errors import UsageError
from train.quiet import quiet
from train.sequences import ContinualConfig

if TYPE_CHECKING:
    from train.lessons import Task
    from train.rules import Rules


def continual(config: ContinualConfig) -> dict[str, Any]:
    """Learn every task that is not learned yet; returns the checkpoints."""
    quiet()
    from train.loop import processes
    from train.retention import replayed_rows
    from train.rules import remembers

    tasks = tasks_of(config)
    if remembers(config):
        divided = processes().num_processes * config.loop.accumulate
        replayed_rows(
            config.loop.batch_size, config.replay.replay_share, divided
        )  # now, not when there is much to lose
    return plan(config, len(tasks)) if config.dry_run else teach(config, tasks)


def teach(config: ContinualConfig, tasks: tuple["Task", ...]) -> dict[str, Any]:
    """With the buffer for this run alone; joint training has none. Raises UsageError where another run has it."""
    import contextlib

    from kdc_edge.files import locked
    from train.loop import processes
    from train.rules import remembers, rules_of

    state, held = processes(), contextlib.nullcontext()
    if remembers(config) and state.is_main_process:
        config.buffer.mkdir(parents=True, exist_ok=True)
        held = locked(config.buffer)
    with held:
        state.wait_for_everyone()
        return learn_all(config, tasks, rules_of(config))


def tasks_of(config: ContinualConfig) -> tuple["Task", ...]:
    """From the file, or the one that is added. Raises UsageError."""
    from train import lessons

    if (config.tasks is None) == (config.add is None):
        raise UsageError("say what to learn: --tasks FILE for a sequence, or --add DATA for one more task")
    if config.tasks is not None:
        return lessons.read(config.tasks)
    return (lessons.Task(Path(config.add).name.split(".")[0], config.add),)


def learn_all(config: ContinualConfig, tasks: tuple["Task", ...], rules: "Rules") -> dict[str, Any]:
    """Each from the student that the one before left."""
    from kdc_edge.checkpoint import Checkpoint
    from train.learner import Learner
    from train.lessons import distinct

    student = config.model
    opened = Checkpoint.open(student)
    distinct(tasks, () if opened.info is None else opened.info.tasks)
    if opened.sampling is not None and opened.sampling.guidance <= 1:
        raise UsageError(
            f"{student} was distilled to {opened.sampling.steps} steps without guidance, which learning undoes; teach the "
            "model it was made of, then run train.fewstep again"
        )
    found = []
    for number, task in enumerate(tasks):
        learner = Learner(config, tasks[: number + 1], student, rules)
        if number == 0:
            learner.survey(tasks)
        found.append(learner.learn())
        student = config.output_dir / task.name
    return {"checkpoints": found, "path": str(student)}


def plan(config: ContinualConfig, tasks: int) -> dict[str, Any]:
    """Hours and memory of all tasks, at most: as if everything was trained, and the student before asked about every row."""
    from dataclasses import replace

    from train.estimate import estimate, hardware, report
    from train.loop import is_main
    from train.rules import rules_of
    from train.student import on_meta, unet_config

    machine = hardware(config.loop)
    if not is_main():
        return {}
    unet = unet_config(str(config.model), None)
    loop = replace(config.loop, steps=config.loop.steps * tasks)
    found = estimate(on_meta(unet), on_meta(unet), loop, machine)
    return {"tasks": tasks, "buffer_bytes": rules_of(config).limit, **report(found)}


def main(argv: list[str] | None = None) -> None:
    command.run(continual, argv, prog="python -m train.continual")


if __name__ == "__main__":
    main()
