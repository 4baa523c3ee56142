"""One seed of the comparison: a base student, every method from it, and what the judge says after each task."""

from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
from kdc_edge.errors import GateError, UsageError
from kdc_edge.files import read_json, replace_file, write_json
from kdc_edge.machine import cores
from kdc_edge.process import processes
from kdc_edge.replay import About
from kdc_edge.spec import pipeline_spec
from kdc_edge.stages import run_stage
from train import diffusion
from train.appraisal import Examiner
from train.continual import teach
from train.data import Pictures, load
from train.folders import as_stored, load_pipeline, save_pipeline, with_unet
from train.learner import Learner
from train.lessons import Lesson, Task, matching, read
from train.pixels import room, webp_bytes
from train.quiet import quiet
from train.replay import new_about
from train.rules import Rules, decided, parse_bytes
from train.sequences import CHOICES, ComparisonConfig, ContinualConfig, ReplayConfig
from train.trainer import seeded

GROUPS = {
    "animals": "Animals & Nature",
    "food": "Food & Drink",
    "travel": "Travel & Places",
    "objects": "Objects",
    "flags": "Flags",
}
OTHERS = ("Smileys & Emotion", "People & Body", "Symbols", "Activities")
CALIBRATION = 16  # captions
SCRATCH, BASE, BUNDLES = "scratch", "base", "int8-bundles"
NOTHING = ReplayConfig(replay_memory="0")


class Trial:
    """All runs of one seed, in a folder of their own."""

    def __init__(self, config: ComparisonConfig) -> None:
        self.config, self.folder = config, config.output_dir / f"seed-{config.loop.seed}"
        self.tasks = tuple(Task(name, where={"group": group}) for name, group in GROUPS.items())
        base = (Task(BASE, where={"group": OTHERS}),)
        if (config.tasks is None) != (config.base is None):
            raise UsageError("--tasks and --base go together: what is learned in sequence, and what is known before")
        if config.tasks is not None and config.base is not None:
            self.tasks, base = read(config.tasks), read(config.base)
        if len(base) != 1 or len(self.tasks) < 2:
            raise UsageError("a comparison takes one base and two tasks or more")
        self.base = base[0]
        steps, rate = config.base_steps, config.base_learning_rate
        self.long = replace(config.loop, steps=steps, learning_rate=rate, warmup=max(1, steps // 30), ema=0.999)
        self.pictures = self._pictures()
        self.examiner = Examiner(self.pictures, config.judge, config.prompts, config.draw_steps, config.strip)
        self.variants = {f"replay-{variant.partition('=')[2]}": variant for variant in config.variants}
        for name in self.variants:
            self._method(name)
        self.blank, self.known = self.folder / "blank", self.folder / BASE / "checkpoints" / self.base.name

    def run(self) -> None:
        """Train and judge what is missing; `result.json` has a row for the base and one after each task, by method."""
        path = self.folder / "result.json"
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        if not self.blank.exists():
            self._save_blank()
        for part in self._each():
            found |= part
            write_json(path, found)

    def _each(self) -> Iterator[dict[str, Any]]:
        """The scores of every part, by method, as they come."""
        config = self.config
        alone, following = ([SCRATCH] if config.scratch else []), [*config.methods, *self.variants]
        workers = config.workers
        if workers is None:
            workers = 1 if torch.cuda.is_available() else cores()
        if workers == 1:
            yield from map(self.part, [BASE, *following, *alone])
            return
        with processes("the comparison", workers) as pool:
            start = partial(pool.submit, in_worker, config, workers)
            running = [start(name) for name in alone]
            start(BASE).result()
            running += [start(name) for name in following]
            for done in tqdm(as_completed(running), f"seed {config.loop.seed}", len(running), unit="run", disable=None):
                yield done.result()

    def part(self, name: str) -> dict[str, Any]:
        """Do what is missing of the base, of training from scratch or of a method, which wants the base done."""
        if name == BASE:
            self._learn(self.blank, (self.base,), self._settings(BASE, loop=self.long, replay=NOTHING))
            self._examined(self.known, BASE)
            return {}
        if name == SCRATCH:
            model = self._scratch()
            return {SCRATCH: scores([self._examined(model, SCRATCH)]) | {"seconds": [seconds(model)]}}
        folders = self._learn(self.known, self.tasks, self._method(name))
        first = self._examined(self.known, BASE)
        rows = [self._examined(folder, f"{name}-{folder.name}") for folder in folders]
        found = {name: scores([first, *rows]) | {"seconds": [seconds(folder) for folder in folders]}}
        if self.config.int8 and name == "replay":
            found[BUNDLES] = scores([first, *(self._as_int8(task.name) for task in self.tasks)]) | {"seconds": []}
        return found

    def strip(self, method: str, task: str) -> Path:
        """PNG of the examiner's shown captions after a task."""
        return self.folder / "exams" / f"{method}-{task}.png"

    def _settings(self, name: str, **changes: Any) -> ContinualConfig:
        folder, config = self.folder / name, self.config
        settings = ContinualConfig(
            output_dir=folder / "checkpoints",
            run_dir=folder / "state",
            buffer=folder / "buffer",
            pictures=config.pictures,
            replay=config.replay,
            weights=config.weights,
            loop=config.loop,
            log=folder / "log.md",
        )
        return replace(settings, **changes)

    def _method(self, method: str) -> ContinualConfig:
        """Its settings."""
        given, settings = self.config.replay, self._settings(method)
        alone = replace(self.config.weights, previous_weight=0.0)
        if (variant := self.variants.get(method)) is not None:
            return varied(settings, variant)
        if method == "pixel-replay":
            room = self._room_for_pixels(decided(given).limit)
            return replace(settings, weights=alone, replay=replace(given, store="fp16", replay_memory=str(room)))
        return {
            "naive": replace(settings, replay=NOTHING),
            "joint": replace(settings, replay=NOTHING, joint=True),
            "replay": settings,
            "replay-no-distillation": replace(settings, weights=alone),
        }[method]

    def _learn(self, student: Path, tasks: tuple[Task, ...], settings: ContinualConfig) -> list[Path]:
        """The checkpoint after each task."""
        teach(replace(settings, model=student), tasks)
        return [settings.output_dir / task.name for task in tasks]

    def _scratch(self) -> Path:
        """Base and tasks at once from random weights, in as many steps as base and all tasks took."""
        loop = replace(self.long, steps=self.long.steps + len(self.tasks) * self.config.loop.steps)
        settings = self._settings(SCRATCH, loop=loop, joint=True)
        return Path(Learner(settings, (self.base, *self.tasks), self.blank, Rules(0)).learn()["path"])

    def _examined(self, model: Path, name: str) -> dict[str, Any]:
        return self.examiner.examine(model, self.folder / "exams" / f"{name}.json")

    def _as_int8(self, task: str) -> dict[str, Any]:
        """Of the checkpoint after a task, as a bundle, calibrated on captions that are not judged."""
        bundle, prompts = self.folder / "int8" / task, self.folder / "int8" / "calibration.txt"
        model = self.folder / "replay" / "checkpoints" / task
        if not (bundle.exists() and Bundle.open(bundle).manifest.provenance.checkpoint == Checkpoint.open(model).id):
            replace_file(prompts, "\n".join(self.examiner.others(CALIBRATION)).encode())
            arguments = ["onnx", "--model", str(model), "-o", str(bundle), "--force", "--precision", "int8"]
            if code := run_stage("convert", [*arguments, "--calibration", str(prompts)]):
                raise GateError(f"{model}: its conversion to int8 ended with exit code {code}")
        return self._examined(bundle, f"{BUNDLES}-{task}")

    def _save_blank(self) -> None:
        """A student of random weights around the frozen autoencoder and text encoder."""
        pipeline, known = load_pipeline(str(self.config.model)), Checkpoint.open(self.config.model)
        old, seed = pipeline.unet.config, self.config.loop.seed
        shape = (old.in_channels, old.sample_size, old.cross_attention_dim)
        unet = seeded(seed, lambda: diffusion.build(self.config.unet, *shape))
        about = {"unet": asdict(self.config.unet), "seed": seed, "networks": known.id}
        info = CheckpointInfo(1, "blank", about, sampling=known.sampling)
        save_pipeline(self.blank, with_unet(pipeline, unet), info)

    def _pictures(self) -> dict[str, Pictures]:
        """Of each task, at the size the student draws."""
        size, _ = pipeline_spec(Checkpoint.open(self.config.model)).image_size
        names = {task.name: self.config.pictures.data if task.data is None else task.data for task in self.tasks}
        loaded = {data: load(data, size).split("train") for data in set(names.values())}
        return {
            t.name: loaded[names[t.name]].select(matching(loaded[names[t.name]].rows, t).numpy()) for t in self.tasks
        }

    def _room_for_pixels(self, memory: int) -> int:
        """Bytes in which fp16 latents are as many items as there is room for lossless WebP in `memory`."""
        config, pipeline = self.config, as_stored(load_pipeline(str(self.config.model)))
        lessons = [Lesson.of(task, config.pictures, pipeline, 0.0) for task in self.tasks]
        return room(self._pixel_buffer(pipeline), [lesson.offer() for lesson in lessons], self.webp_sizes, memory)

    @cached_property
    def webp_sizes(self) -> dict[str, int]:
        """Bytes of each picture, by SHA-256 of its file."""
        every = [zip(group.pixels, group.rows, strict=True) for group in self.pictures.values()]
        return {row["sha256"]: webp_bytes(pixels) for pictures in every for pixels, row in pictures}

    def _pixel_buffer(self, pipeline: StableDiffusionPipeline) -> About:
        """As the learner begins one."""
        policy, unet = decided(self.config.replay).policy, pipeline.unet.config
        shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        chosen = {"limit": 0, "policy": policy, "store": "fp16", "seed": self.config.loop.seed}
        return new_about("", "", shape, (self.base.name,), **chosen)


def varied(settings: ContinualConfig, variant: str) -> ContinualConfig:
    """One setting otherwise, as `policy=herding`. Raises UsageError."""
    name, _, value = variant.partition("=")
    if name == "replay-memory":
        return replace(settings, replay=replace(settings.replay, replay_memory=str(parse_bytes(value))))
    if value not in CHOICES.get(name, ()):
        known = ", ".join(f"{each}={'|'.join(values)}" for each, values in CHOICES.items())
        raise UsageError(f"--variants {variant}: one of replay-memory=BYTES, {known} is wanted")
    if name == "update":
        return replace(settings, update=value)
    return replace(settings, replay=replace(settings.replay, **{name: value}))


def in_worker(config: ComparisonConfig, workers: int, name: str) -> dict[str, Any]:
    """A part of the trial, in a process of its own."""
    quiet()
    torch.set_num_threads(max(1, cores() // workers))
    return Trial(config).part(name)


def scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in ("top1", "kid")} | {"count": rows[0]["count"]}


def seconds(checkpoint: Path) -> float:
    """CPU seconds of training, and of drawing what it was held to."""
    info = read_json(checkpoint / "kdc.json")
    return info["losses"]["cpu_seconds"] + info["metrics"]["pool_cpu_seconds"]
