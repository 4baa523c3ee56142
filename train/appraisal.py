"""How well a student draws each task: the right picture first by the judge, and KID to the task's real pictures.

Any checkpoint or bundle, by the project's own samplers; what was measured of the same model in the same way is read back.
"""

# N pictures drawn of a task, M candidates, D feature dimensions

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from kdc_edge.drawing import How, draw
from kdc_edge.files import read_json, replacing, write_json
from kdc_edge.inspection import open_any
from kdc_edge.prompts import chosen
from kdc_edge.quality import Quality
from kdc_edge.runtimes import Options
from kdc_edge.torch_ref.distances import kernel_distance
from kdc_edge.torch_ref.extractors import judge_images
from kdc_edge.torch_ref.judge import identical, retrieval
from kdc_edge.torch_ref.subject import Subject
from train.data import Pictures
from train.drawing import sheet

BATCH = 16


@dataclass(frozen=True)
class Exam:
    """One task: captions to draw, the candidates that are right, and the features (n, D) of all its pictures."""

    name: str
    prompts: tuple[str, ...]
    truth: NDArray[np.int64]
    real: NDArray[np.float32]


class Examiner:
    """Every picture of all tasks is a candidate; a few of each task, a fixed choice, are drawn."""

    def __init__(self, tasks: dict[str, Pictures], judge: str, prompts: int, steps: int, strip: int) -> None:
        _, self.extract = judge_images(judge)
        self.steps, self.strip = steps, strip
        digests = {name: pictures.digest() for name, pictures in tasks.items()}
        self.way = {"judge": self.extract.hash, "prompts": prompts, "steps": steps, "strip": strip, "pictures": digests}
        self.captions = [group[0] for pictures in tasks.values() for group in pictures.captions]
        pixels = np.concatenate([pictures.pixels for pictures in tasks.values()])
        self.features, self.classes = self.extract(list(pixels)), identical(pixels)
        starts = np.cumsum([0, *map(len, tasks.values())])
        self.exams = [
            self._exam(name, pictures, start, prompts)
            for (name, pictures), start in zip(tasks.items(), starts[:-1], strict=True)
        ]

    def _exam(self, name: str, pictures: Pictures, start: int, prompts: int) -> Exam:
        rows = chosen(len(pictures), min(prompts, len(pictures)), name)
        texts = tuple(pictures.captions[i][0] for i in rows)
        return Exam(name, texts, start + np.array(rows), self.features[start : start + len(pictures)])

    def examine(self, model: Path, result: Path) -> dict[str, Any]:
        """`{"top1": [...], "kid": [...], "count": [...]}` by task, kept in `result`; beside it a strip of pictures.

        Read back where model, judge, pictures, number of prompts and steps are the same, else measured anew.
        """
        about = {"model": open_any(model).id, "way": self.way}
        known = read_json(result) if result.exists() else {}
        if {name: known.get(name) for name in about} == about:
            return known
        subject = Subject.open(model, "ort", Options(), Quality(batch=BATCH))
        found: dict[str, Any] = {**about, "top1": [], "kid": [], "count": []}
        shown: list[NDArray[np.uint8]] = []
        for exam in self.exams:
            pixels = drawn(subject, exam.prompts, self.steps)
            features = self.extract(list(pixels))
            found["top1"].append(self._top1(features, exam))
            found["kid"].append(kernel_distance(features, exam.real).value)
            found["count"].append(len(pixels))
            shown += list(pixels[: self.strip])
        subject.close()
        with replacing(result.with_suffix(".png")) as temporary:
            sheet(np.stack(shown), columns=len(shown)).save(temporary)
        write_json(result, found)
        return found

    @property
    def shown(self) -> list[str]:
        """The captions of a strip."""
        return [prompt for exam in self.exams for prompt in exam.prompts[: self.strip]]

    def others(self, count: int) -> list[str]:
        """Captions that are not drawn, evenly over all tasks; those that are, where there are no others."""
        asked = {prompt for exam in self.exams for prompt in exam.prompts}
        left = [text for text in self.captions if text not in asked] or self.captions
        return [left[i] for i in np.linspace(0, len(left) - 1, min(count, len(left)), dtype=int)]

    def _top1(self, features: NDArray[np.float32], exam: Exam) -> float:
        pictures, candidates = (normalize(torch.from_numpy(x), dim=-1) for x in (features, self.features))
        return retrieval(pictures @ candidates.T, exam.truth, self.classes).top1


def drawn(subject: Subject, prompts: Sequence[str], steps: int) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8; picture i has the noise of seed i, and the model's own guidance."""
    assert subject.pipeline is not None
    how = How.of(subject.pipeline, 0, steps=steps)
    images = []
    for start in range(0, len(prompts), subject.batch):
        part = prompts[start : start + subject.batch]
        images += draw(subject.pipeline, part, range(start, start + len(part)), how)
    return np.stack([np.asarray(image) for image in images])
