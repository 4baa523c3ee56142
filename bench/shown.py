"""Pictures of every bundle side by side: its golden ones, which it brought along, or drawn now from given prompts."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bench.subjects import Subject
from kdc_edge.errors import BundleError, GateError, KdcError
from kdc_edge.files import read_json
from kdc_edge.page import escape
from kdc_edge.pipeline import Pipeline

GOLDEN, VECTORS = "golden/golden.json", "golden/vectors.safetensors"
SIDE = 512  # pixels at most, so that a report of large models stays small


@dataclass(frozen=True)
class Pictures:
    """By (prompt, seed); `missing` says why there are none, or none of some."""

    shown: dict[tuple[str, int], Image.Image]
    missing: str = ""


def golden(subject: Subject) -> Pictures:
    """What the bundle's converter drew with it."""
    if subject.bundle is None:
        return Pictures({}, "only records were given, not the folder")
    folder, files = subject.bundle.path, subject.bundle.manifest.files
    if GOLDEN not in files or VECTORS not in files:
        return Pictures({}, "there are no golden pictures in the bundle")
    try:
        about, images = read_json(folder / GOLDEN), load_file(folder / VECTORS)["images"]
        keys = [(prompt, about["seed"] + i) for i, prompt in enumerate(about["prompts"])]
        return Pictures(dict(zip(keys, map(Image.fromarray, images), strict=True)))
    except (BundleError, SafetensorError, KeyError, TypeError, ValueError) as error:
        return Pictures({}, f"the golden pictures cannot be read ({error})")


def drawn(subject: Subject, prompts: Sequence[str], seed: int, runtime: str) -> Pictures:
    """Prompt i with the noise of seed + i, by the bundle's own sampler, steps and guidance."""
    if subject.bundle is None:
        return Pictures({}, "only records were given, not the folder")
    found: dict[tuple[str, int], Image.Image] = {}
    try:
        with Pipeline.open(subject.bundle, runtime) as pipe:
            for i, prompt in enumerate(prompts):
                found[prompt, seed + i] = pipe.generate(prompt, seed=seed + i)
    except GateError as error:
        return Pictures(found, str(error))
    except KdcError as error:
        return Pictures({}, f"the bundle cannot be run here ({error})")
    return Pictures(found)


def grid(subjects: Sequence[Subject], pictures: Sequence[Pictures]) -> str:
    """A block per prompt and seed, in it a picture by every bundle; what is missing says so."""
    missing: dict[str, list[str]] = {}
    for subject, each in zip(subjects, pictures, strict=True):
        missing.setdefault(each.missing, []).append(subject.label)
    notes = [f"No pictures of {', '.join(names)}: {why}." for why, names in missing.items() if why]
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    columns = [(subject, each) for subject, each in zip(subjects, pictures, strict=True) if each.shown]
    blocks = [
        f'<article class="prompt"><h3>{escape(prompt or "(empty prompt)")} <small>seed {seed}</small></h3><div>'
        + "".join(_figure(each, (prompt, seed), subject.label) for subject, each in columns)
        + "</div></article>"
        for prompt, seed in dict.fromkeys(key for _, each in columns for key in each.shown)
    ]
    return f'<div class="prompts" style="--bundles: {len(columns)}">{"".join(blocks)}</div>{below}'


def _figure(pictures: Pictures, key: tuple[str, int], label: str) -> str:
    return f"<figure>{_cell(pictures, key, label)}<figcaption>{escape(label)}</figcaption></figure>"


def _cell(pictures: Pictures, key: tuple[str, int], label: str) -> str:
    picture = pictures.shown.get(key)
    if picture is None:
        return '<span class="state none">not drawn</span>'
    picture = picture.copy()
    picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    large = np.prod(picture.size) > 128 * 128
    picture.save(data, "WEBP", quality=88) if large else picture.save(data, "PNG", optimize=True)
    kind, name = ("webp" if large else "png"), escape(f"{key[0]} by {label}, seed {key[1]}")
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{name}" title="{name}" src="data:image/{kind};base64,{encoded}">'
