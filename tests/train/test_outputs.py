"""Where a run's result goes is settled before the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdc_edge.errors import UsageError
from train.decoder import decoder
from train.distill import distill
from train.fewstep import fewstep
from train.judge import train_judge
from train.recipes import DecoderConfig, DistillConfig, FewStepConfig, JudgeConfig, TeacherConfig
from train.teacher import train_teacher

RUNS = {
    "teacher": (train_teacher, TeacherConfig()),
    "judge": (train_judge, JudgeConfig()),
    "distill": (distill, DistillConfig()),
    "fewstep": (fewstep, FewStepConfig()),
    "decoder": (decoder, DecoderConfig(Path("assets/emoji-64/teacher"))),
}


@pytest.mark.parametrize("name", RUNS)
def test_one_in_the_way_of_the_run_itself_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    """The run's state would lie there when the result comes, and hours be lost."""
    train, config = RUNS[name]
    settings: Any = replace(config, run_dir=tmp_path / "runs" / "new")
    for output in (settings.run_dir, settings.run_dir.parent):
        with pytest.raises(
            UsageError, match=r"-o .* the place of the run's own .*new; give another, as .*new/checkpoint$"
        ):
            train(replace(settings, output_dir=output))
    assert not list(tmp_path.iterdir())
