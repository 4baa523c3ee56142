"""What ships: whole, within its sizes, and of one family."""

import json
from pathlib import Path

import pytest

from kdc_edge import Bundle, Checkpoint
from kdc_edge.checkpoint import Sampling
from kdc_edge.pipeline import DEFAULT_BUNDLE

ASSETS = Path(__file__).parents[1] / "assets" / "emoji-64"
MB, MIB = 1_000_000, 2**20


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_teacher_is_small_enough_and_in_small_shards() -> None:
    Checkpoint.open(ASSETS / "teacher")
    assert bytes_in(ASSETS / "teacher") < 80 * MB
    assert all(path.stat().st_size < 16 * MIB for path in ASSETS.rglob("*.safetensors"))


def test_the_student_comes_from_the_teacher_and_is_smaller() -> None:
    info = Checkpoint.open(ASSETS / "student").info
    assert info is not None and info.teacher == Checkpoint.open(ASSETS / "teacher").id
    assert info.metrics["parameters"] <= 0.6 * info.metrics["teacher_parameters"]


def test_the_few_step_student_has_the_students_networks() -> None:
    few, student = (Checkpoint.open(ASSETS / name) for name in ("fewstep", "student"))
    assert few.info is not None and few.info.teacher == Checkpoint.open(ASSETS / "teacher").id
    assert few.info.sampling == Sampling(steps=4, guidance=1.0)
    for component in ("unet", "vae", "text_encoder"):
        theirs, ours = (checkpoint.config(component) for checkpoint in (few, student))
        assert theirs | {"_name_or_path": None} == ours | {"_name_or_path": None}


def test_the_default_bundle_comes_from_the_few_step_student_and_fits_into_the_package() -> None:
    bundle = Bundle.open(DEFAULT_BUNDLE)
    assert bundle.manifest.provenance.checkpoint == Checkpoint.open(ASSETS / "fewstep").id
    assert (bundle.manifest.pipeline.steps, bundle.manifest.pipeline.guidance) == (4, 1.0)
    assert bytes_in(DEFAULT_BUNDLE) <= 16 * MB


def test_the_log_names_every_checkpoint_that_ships() -> None:
    log = (ASSETS.parents[1] / "docs" / "log.md").read_text(encoding="utf-8")
    for name in ("teacher", "student", "fewstep"):
        assert Checkpoint.open(ASSETS / name).id in log


@pytest.mark.parametrize("name", ["teacher", "student", "fewstep"])
def test_diffusers_loads_and_draws(name: str) -> None:
    import numpy as np
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / name)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red apple", height=64, width=64, num_inference_steps=4, output_type="np").images[0]
    assert np.isfinite(picture).all() and picture.std() > 2 / 255


FLOORS = json.loads((ASSETS / "floors.json").read_text(encoding="utf-8"))
MISSED = pytest.mark.xfail(raises=AssertionError, reason="not reached yet, docs/log.md has the figures")
TOP1 = ("by_text_top1", "by_picture_top1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The figures of every shipped checkpoint, measured anew."""
    from kdc_edge.quality import Quality
    from train.evaluate import evaluate
    from train.recipes import EvaluateConfig

    def flat(found: dict) -> dict[str, float]:
        trained, unseen, ceiling = (card["numbers"] for card in found["cards"][:3])
        figures = {name: number["value"] for name, number in trained.items()}
        return figures | {"vae_psnr": ceiling["vae_psnr"]["value"], "unseen_tone": unseen["tone"]["value"]}

    run = tmp_path_factory.mktemp("quality")
    names = ("teacher", "student", "fewstep")
    return {name: flat(evaluate(EvaluateConfig(ASSETS / name, Quality(run_dir=run)))) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("figure", FLOORS["teacher"])
def test_the_teacher_reaches_its_floor(measured: dict[str, dict[str, float]], figure: str) -> None:
    assert measured["teacher"][figure] >= FLOORS["teacher"][figure]


@pytest.mark.slow
@MISSED
@pytest.mark.parametrize("figure", TOP1)
@pytest.mark.parametrize("name", ["student", "fewstep"])
def test_a_student_keeps_its_share(measured: dict[str, dict[str, float]], name: str, figure: str) -> None:
    assert measured[name][figure] >= FLOORS[f"{name}_share_of_top1"] * measured["teacher"][figure]
