"""One task of a sequence: learned by the student of the tasks before it, saved, and taken into the buffer.

The checkpoint comes first and the buffer after it, so that a run that was killed between the two only has to take in.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.replay import is_buffer
from kdc_edge.schema import canonical
from train import diffusion, logbook, updates
from train.cache import vocabulary_hash, weights_hash
from train.drawing import sampler
from train.folders import as_stored, load_pipeline, save_pipeline, with_unet
from train.lessons import Lesson, Task, different, joined
from train.loop import fit, is_main, pick_device, processes
from train.recall import Recall, pool_cpu_seconds
from train.recipes import PicturesConfig
from train.replay import Buffer, new_about
from train.retention import Retention, continual_loss, replayed_rows
from train.rules import Rules
from train.sequences import ContinualConfig
from train.trainer import History

RECIPE = "continual"
SETTINGS = ("replay", "weights", "update", "rank", "joint", "toned_share", "loop")
READING, USUALLY = ("flips", "cache_dtype"), PicturesConfig()


@dataclass(frozen=True)
class Networks:
    """What must be the same for latents and captions to mean the same: hashes."""

    vae: str
    vocabulary: str
    text_encoder: str

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline) -> "Networks":
        return cls(weights_hash(pipeline.vae), vocabulary_hash(pipeline.tokenizer), weights_hash(pipeline.text_encoder))


class Learner:
    """`tasks[-1]` is learned, by `student`, which has learned those before it; `rules` are its buffer's."""

    def __init__(self, config: ContinualConfig, tasks: tuple[Task, ...], student: Path, rules: Rules) -> None:
        self.config, self.tasks, self.task, self.rules = config, tasks, tasks[-1], rules
        self.before = Checkpoint.open(student)
        self.learned = () if self.before.info is None else self.before.info.tasks
        self.pipeline = as_stored(load_pipeline(str(student)))
        self.networks = Networks.of(self.pipeline)
        self.folder, self.state = config.output_dir / self.task.name, config.run_dir / self.task.name

    def survey(self, tasks: Sequence[Task]) -> None:
        """Look at the data of this task and those that follow it. Raises what `lesson` does, UsageError for a repetition."""
        buffer, info = self.buffer(), self.before.info
        known = info.config.get("data", []) if info is not None and info.recipe == RECIPE else []
        learned = dict(zip(reversed(known), reversed(self.learned), strict=False))
        different([self.lesson(task) for task in tasks], {} if buffer is None else buffer.pictures, learned)

    def lesson(self, task: Task) -> Lesson:
        return Lesson.of(task, self.config.pictures, self.pipeline, self.config.toned_share)

    def learn(self) -> dict[str, Any]:
        """Do what is not done yet. Raises UsageError where buffer or checkpoint belong to other settings."""
        buffer = self.buffer()
        lessons = [self.lesson(task) for task in (self.tasks if self.config.joint else (self.task,))]
        settings = self.settings(lessons)
        if self.folder.exists():
            if not self.made_with(settings):
                raise UsageError(
                    f"{self.folder} was made with other settings; choose another --output-dir or remove it"
                )
        else:
            self.train(lessons, buffer, settings)
        if buffer is not None and buffer.about.tasks == self.learned and is_main():
            buffer.take(lessons[-1].offer()).save(self.config.buffer)
        processes().wait_for_everyone()
        return {"task": self.task.name, "path": str(self.folder), "checkpoint": Checkpoint.open(self.folder).id}

    def buffer(self) -> Buffer | None:
        """The student's, or a new one. Raises UsageError where it cannot be this student's."""
        config = self.config
        if not self.rules.limit:
            return None
        if not is_buffer(config.buffer):
            if config.add is not None:
                raise UsageError(f"{config.buffer}: no replay buffer; --add goes on with one, --tasks begins one")
            unet = self.pipeline.unet.config
            about = new_about(
                self.networks.vae,
                self.networks.vocabulary,
                (unet.in_channels, unet.sample_size, unet.sample_size),
                self.learned,
                seed=config.loop.seed,
                **asdict(self.rules),
            )
            return Buffer.empty(about)
        buffer = Buffer.open(config.buffer)
        buffer.require(self.networks.vae, self.networks.vocabulary)
        self.require_tasks(buffer.about.tasks)
        return buffer

    def require_tasks(self, held: tuple[str, ...]) -> None:
        """UsageError where a buffer knows other tasks than the student; it may be ahead of one whose tasks are done."""
        ahead = (*self.learned, self.task.name)
        if held != self.learned and not (self.folder.exists() and held[: len(ahead)] == ahead):
            seen, wanted = (", ".join(names) or "nothing" for names in (held, self.learned))
            raise UsageError(
                f"{self.config.buffer} is of {seen}; the student has learned {wanted}: give its own --buffer"
            )

    def settings(self, lessons: list[Lesson]) -> dict[str, Any]:
        """All that decides the checkpoint, but for what the buffer holds, as JSON data."""
        teacher = self.config.teacher
        found = {name: asdict(self.config)[name] for name in SETTINGS} | {
            "student": self.before.id,
            "task": asdict(self.task),
            "data": [lesson.digest for lesson in lessons],
            "teacher": None if teacher is None else Checkpoint.open(teacher).id,
            "buffer": None,
        }
        # how pictures are read, where it is not as usual
        found |= {
            name: said for name in READING if (said := getattr(self.config.pictures, name)) != getattr(USUALLY, name)
        }
        if self.rules.limit:
            found["replay"] |= self.rules.flags
        else:
            found |= {"replay": None, "weights": None}  # they decide nothing
        return json.loads(json.dumps(found))

    def made_with(self, settings: dict[str, Any]) -> bool:
        """Whether the finished checkpoint was; its buffer may have been given another size since."""
        info, replay = Checkpoint.open(self.folder).info, settings["replay"]
        known = {} if info is None else info.config | {"buffer": None}
        if replay and known.get("replay") and is_buffer(self.config.buffer):
            known["replay"] = known["replay"] | {"replay_memory": replay["replay_memory"]}
        return known == settings

    def claim(self, settings: dict[str, Any]) -> None:
        """The run folder, for these settings. Raises UsageError where it holds a run of others."""
        path = self.state / "settings.json"
        if path.exists() and read_json(path) != settings:
            raise UsageError(
                f"{self.state} holds a run with other settings or data; choose another --run-dir or remove it"
            )
        if is_main():
            write_json(path, settings)

    def train(self, lessons: list[Lesson], buffer: Buffer | None, settings: dict[str, Any]) -> None:
        """Learn the task and save the student."""
        config, loop = self.config, self.config.loop
        settings = settings | {"buffer": None if buffer is None else buffer.digest()}
        self.claim(settings)
        device = pick_device()
        self.pipeline.to(device)  # whole: it draws
        diffusion.for_inference(self.pipeline.unet, device)
        unet = diffusion.for_training(load_pipeline(str(self.before.path)).unet, device)
        updates.restrict(unet, config.update, config.rank, loop.seed)
        retention = None if buffer is None else self.retention(buffer)
        divided = processes().num_processes * loop.accumulate
        replayed = replayed_rows(loop.batch_size, config.replay.replay_share, divided) if retention else 0
        new = joined(lessons) if config.joint else lessons[-1].source
        loss = continual_loss(new, retention, loop.batch_size, replayed)
        sample = sampler(self.pipeline, [[text] for text in lessons[-1].captions], self.state / "samples")
        path = self.state / "unet.safetensors"
        history = fit(unet, loss, loop, path, key=settings, label=self.task.name, sample=sample)
        updates.merge(unet, config.update)
        if is_main():
            self.save(unet, history, settings, [lesson.task.name for lesson in lessons])

    def save(self, unet: UNet2DConditionModel, history: History, settings: dict[str, Any], tasks: list[str]) -> None:
        """A student like the one before, that says which tensors are others."""
        info = CheckpointInfo(
            format=1,
            recipe=RECIPE,
            config=settings,
            teacher=self.before.id,
            data=hashlib.sha256(canonical(settings["data"])).hexdigest(),
            sampling=self.before.sampling,
            losses=logbook.curve(history),
            tasks=tuple(dict.fromkeys([*self.learned, *tasks])),
            metrics={
                "changed": updates.changed(self.pipeline.unet, unet),
                "tensors": len(unet.state_dict()),
                "pool_cpu_seconds": round(pool_cpu_seconds(self.state), 3),
            },
        )
        saved = save_pipeline(self.folder, with_unet(self.pipeline, unet), info)
        results = {"checkpoint": saved.id, **logbook.summary(history)}
        logbook.append(self.config.log, f"continual learning, {self.task.name}", settings, results)

    def retention(self, buffer: Buffer) -> Retention | None:
        """What replayed draws are held to; None where nothing was learned yet, or nothing is to be kept."""
        weights = self.config.weights
        teacher = self.teacher() if weights.teacher_weight else None
        if not (weights.replay_weight or weights.previous_weight or teacher):
            return None
        recall = Recall(buffer, self.config.pictures, self.pipeline)
        stored, pooled = recall.stored(), None
        if weights.previous_weight or teacher:
            with processes().main_process_first():
                pooled = recall.pooled(self.state, self.config.replay, self.config.loop.seed)
        if stored is None and pooled is None:
            return None
        return Retention(stored, pooled, weights, self.pipeline.unet if weights.previous_weight else None, teacher)

    def teacher(self) -> nn.Module | None:
        """Its U-Net, frozen. Raises UsageError where latents or captions mean something else to it."""
        path = self.config.teacher
        if path is None:
            return None
        found = as_stored(load_pipeline(str(path)))
        if Networks.of(found) != self.networks:
            raise UsageError(f"--teacher {path}: its autoencoder, tokenizer or text encoder is not the student's")
        teacher: UNet2DConditionModel = found.unet.to(pick_device())
        return teacher
