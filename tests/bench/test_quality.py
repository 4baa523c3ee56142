"""`bench quality`: a bundle through its own runtime to a card, a verdict, and what it refuses."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.quality import CardsConfig, QualityConfig, cards, quality
from kdc_edge import cards as metric_cards
from kdc_edge import drawing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, GateError, MissingBackend, UsageError
from kdc_edge.quality import Quality


@pytest.fixture
def config(hand_bundle: Path, tiny_gallery: Path, tiny_clip: Path, tmp_path: Path) -> QualityConfig:
    """Eight of the tiny gallery's sixteen, judged by a CLIP of sixteen dimensions."""
    asked = Quality(data=tiny_gallery, judge=str(tiny_clip), count=8, steps=1, run_dir=tmp_path / "run")
    return QualityConfig(hand_bundle, replace(asked, output=tmp_path / "card.json"))


def with_quality(config: QualityConfig, **changes: object) -> QualityConfig:
    return replace(config, quality=replace(config.quality, **changes))


def test_a_card_for_each_set_with_all_it_rests_on(config: QualityConfig, tmp_path: Path, capsys) -> None:
    data = quality(config)
    assert json.loads((tmp_path / "card.json").read_text()) == data
    found = metric_cards.read(tmp_path / "card.json")
    trained, unseen = found.cards
    assert (trained.id, trained.count, trained.how.steps) == (Bundle.open(config.bundle).id, 8, 1)
    shares = {f"by_{by}_{top}" for by in ("text", "picture") for top in ("top1", "top5")}
    assert (
        set(trained.numbers) == {"kid", "clip"} | shares and "fewer than the 16 feature" in trained.not_measured["fid"]
    )
    assert set(unseen.numbers) == {"kid", "clip", "tone"} and unseen.count == 2
    for number in trained.numbers.values():
        assert number.low <= number.value <= number.high and number.count == 8
        assert len(number.basis.extractor_hash) == 64 and "bicubic to 32" in number.basis.resize
    assert (
        len(trained.numbers["kid"].basis.reference_hash) == 64 and "8 others" in trained.numbers["kid"].basis.reference
    )
    assert "| kid ↓ |" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cache"]


def test_kept_pictures_give_the_same_card(config: QualityConfig, tmp_path: Path) -> None:
    first = quality(with_quality(config, prompts=("trained",), keep=True, force=True))["cards"][0]
    (pictures,) = (path for path in (tmp_path / "run").glob("*/pictures"))
    known = drawing.read(pictures)
    assert len(list(pictures.glob("*.png"))) == 8 and known.pictures[3].seed == 3
    again = quality(replace(with_quality(config, prompts=("trained",), force=True), bundle=pictures))["cards"][0]
    assert again["numbers"] == first["numbers"] and "fid" in first["numbers"]
    assert (again["model"], again["id"], again["how"]) == (first["model"], first["id"], first["how"])
    with pytest.raises(UsageError, match=r"with seed 0, asked for is .* with seed 1"):
        quality(replace(with_quality(config, prompts=("trained",), seed=1), bundle=pictures))
    with pytest.raises(UsageError, match="one set of prompts"):
        quality(replace(config, bundle=pictures))
    victim = pictures / known.pictures[2].file
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(BundleError, match="1 of 8 pictures cannot be read"):
        quality(replace(with_quality(config, prompts=("trained",)), bundle=pictures))
    card = quality(replace(with_quality(config, prompts=("trained",), skip_bad=True), bundle=pictures))["cards"][0]
    assert (card["skipped"], card["numbers"]["clip"]["count"]) == (1, 7)


def test_a_bundle_is_as_good_as_itself(config: QualityConfig) -> None:
    pytest.importorskip("torchmetrics")
    asked = with_quality(config, against=config.bundle, force=True, aa_seeds=1, prompts=("trained",))
    found = quality(asked)
    assert found["verdict"]["outcome"] == "equivalent"
    assert [(c["metric"], c["value"], c["high"]) for c in found["verdict"]["changes"]] == [
        ("fid", 0, 0),
        ("clip", 0, 0),
    ]
    numbers = found["cards"][0]["numbers"]
    assert numbers["psnr"]["value"] == 100 and numbers["ssim"]["value"] == pytest.approx(1)
    assert found["verdict"]["reference"]["id"] == Bundle.open(config.bundle).id


def test_pictures_of_nothing_are_degraded(config: QualityConfig, tmp_path: Path) -> None:
    """Black pictures in place of real ones: KID says so, and the FID's verdict is exit 1."""
    pytest.importorskip("torchmetrics")
    real, black = tmp_path / "real", tmp_path / "black"
    rows = json.loads(json.dumps([row.file for row in _rows(config.quality.data)]))
    for folder in (real, black):
        folder.mkdir()
    for i, name in enumerate(rows[:16]):
        picture = Image.open(config.quality.data / name).convert("RGB")
        picture.save(real / f"{i:02}.png")
        Image.new("RGB", picture.size).save(black / f"{i:02}.png")
    (tmp_path / "p.txt").write_text("\n".join(row.text for row in _rows(config.quality.data)[:16]), encoding="utf-8")
    asked = with_quality(
        config, prompts=(str(tmp_path / "p.txt"),), count=None, reference=config.quality.data, steps=None
    )
    asked = replace(with_quality(asked, against=real, metrics=("fid", "kid", "psnr")), bundle=black)
    with pytest.raises(GateError, match=r"degraded: fid on p\.txt is worse by"):
        quality(asked)
    card = metric_cards.read(tmp_path / "card.json").cards[0]
    assert card.numbers["psnr"].value < 20 and card.kind == "pictures"


def _rows(data: Path):
    from kdc_edge.gallery import rows_of

    return rows_of(data)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metrics": ("fid",)}, "8 pictures are fewer than the 16 feature dimensions.*take kid"),
        ({"metrics": ("psnr",)}, "name it with --against"),
        ({"lpips": "alex"}, "--lpips and --lpips-weights go together"),
        ({"prompts": ()}, "no prompts"),
        ({"against": Path("x"), "metrics": ("kid",)}, "decides by fid and clip"),
        ({"count": 99}, "16 prompts, 99 were asked for"),
        ({"band": 2.0}, "--band between 0 and 1"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "dim"}, "did you mean 'ddim'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_drawing(
    config: QualityConfig, changes: dict, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=problem):
        quality(with_quality(config, **changes))
    assert not list((tmp_path / "run").glob("*/pictures"))


def test_pictures_of_one_s_own_must_be_as_many_as_the_prompts(config: QualityConfig, tmp_path: Path) -> None:
    for count, problem in ((7, "has 7 pictures, 8 were asked for"), (9, "has 9 pictures for 8 prompts")):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(folder / f"{i}.png")
        with pytest.raises(UsageError, match=problem):
            quality(replace(with_quality(config, prompts=("trained",)), bundle=folder))


def test_cards_side_by_side(config: QualityConfig, tmp_path: Path, capsys) -> None:
    quality(config)
    shutil.copy(tmp_path / "card.json", tmp_path / "a.json")
    quality(with_quality(config, steps=2))
    files = (tmp_path / "a.json", tmp_path / "card.json")
    with pytest.raises(UsageError, match="steps: 1 against 2"):
        cards(CardsConfig(files))
    text = cards(CardsConfig(files, across=("steps",), output=tmp_path / "out" / "table.md"))["table"]
    assert (tmp_path / "out" / "table.md").read_text() == text
    assert text.count("| clip ↑ |") == 2 and "1 ddim steps" in text and "2 ddim steps" in text
    with pytest.raises(UsageError, match="no cards"):
        cards(CardsConfig(()))


def test_the_card_goes_into_the_report_and_from_there_into_records(config: QualityConfig, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(config.bundle, tmp_path / "copy"))
    before = Bundle.open(bundle)
    found = quality(replace(with_quality(config, prompts=("generalisation",)), bundle=bundle, record=True))
    after = Bundle.open(bundle)
    assert after.report == {**before.report, "quality": found} and after.id == before.id
    with pytest.raises(BundleError, match="manifest"):
        quality(replace(config, bundle=config.quality.data, record=True))


def test_without_torch_it_says_what_to_install(config: QualityConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kdc_edge.torch_ref.measured", raising=False)
    monkeypatch.setitem(sys.modules, "kdc_edge.torch_ref.measure", None)
    with pytest.raises(MissingBackend, match=r"pip install 'kdc-edge\[quality\]'"):
        quality(config)
