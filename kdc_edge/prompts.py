"""Fixed sets of prompts, each with a hash: emoji-64's trained and generalisation captions, and text files by path.

    trained, generalisation                      of the data set with pictures
    parti.tsv, captions.csv                      the column Prompt, prompt, caption or text
    captions_val2014.json                        COCO's: the first caption of each picture, by the picture's number
    prompts.jsonl, prompts.txt                   a "prompt", "caption" or "text" a line; a prompt a line

Fewer than all are a fixed choice, the same for every model.
"""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdc_edge import gallery, schema
from kdc_edge.errors import BundleError, UsageError, suggest

CHOICE = 20_261  # seed of the fixed choice
TRAINED, GENERALISATION = "trained", "generalisation"
SETS = (TRAINED, GENERALISATION)
USUAL = 256  # of emoji-64's trained captions
COLUMNS = ("Prompt", "prompt", "caption", "text")


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order; `rows` are their numbers in the data set with pictures, if they come from one."""

    name: str
    prompts: tuple[str, ...]
    rows: tuple[int, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of the prompts in their order."""
        return hashlib.sha256(schema.canonical(list(self.prompts))).hexdigest()


def load(name: str, data: Path, count: int | None) -> PromptSet:
    """A set by name or path; all of it, or `count`. Raises UsageError where there are fewer."""
    if name in SETS:
        return _emoji(name, data, count)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"no prompt set or file '{name}'; the sets are {', '.join(SETS)}{suggest(name, SETS)}")
    prompts = read(path)
    return PromptSet(path.name, tuple(prompts[i] for i in chosen(len(prompts), count, name)))


def chosen(total: int, count: int | None, what: str) -> list[int]:
    """`count` numbers below `total`; all in their order if none is given."""
    if count is None or count == total:
        return list(range(total))
    if not 0 < count <= total:
        raise UsageError(f"{what}: has {total} prompts, {count} were asked for; ask for 1 to {total}")
    return np.random.RandomState(CHOICE).choice(total, count, replace=False).tolist()


def _emoji(name: str, data: Path, count: int | None) -> PromptSet:
    """Trained: a choice of the emoji without skin tone. Generalisation: all captions of that split."""
    rows = gallery.rows_of(data)
    if name == GENERALISATION:
        of = [i for i, row in enumerate(rows) if row.split == GENERALISATION]
        keep = list(range(len(of)))
    else:
        of = [i for i, row in enumerate(rows) if not row.tone]
        keep = chosen(len(of), min(USUAL, len(of)) if count is None else count, f"{data}, {name}")
    if not of:
        raise UsageError(f"{data}: has no {name} captions")
    found = tuple(of[i] for i in keep)
    return PromptSet(f"{data.name}:{name}", tuple(rows[i].text for i in found), found)


def read(path: Path) -> list[str]:
    """The prompts of a file, by its suffix. Raises BundleError for one that is not UTF-8 or holds none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = [prompt.strip() for prompt in _parse(text, path.suffix)]
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise BundleError(f"{path}: not readable as prompts ({error})") from error
    found = [prompt for prompt in found if prompt]
    if not found:
        raise BundleError(f"{path}: no prompts in it")
    return found


def _parse(text: str, suffix: str) -> Sequence[str]:
    if suffix in (".tsv", ".csv"):
        rows = csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",")
        column = _column(rows.fieldnames or ())
        return [row[column] for row in rows]
    if suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [record[_column(list(record))] for record in records]
    if suffix == ".json":
        return _coco(json.loads(text))
    return text.splitlines()


def _coco(data: dict[str, list[dict[str, object]]]) -> list[str]:
    """One caption a picture: that of the lowest id."""
    captions: dict[int, str] = {}
    for entry in sorted(data["annotations"], key=lambda entry: int(str(entry["id"]))):
        captions.setdefault(int(str(entry["image_id"])), str(entry["caption"]))
    return [captions[image] for image in sorted(captions)]


def _column(names: Sequence[str]) -> str:
    for column in COLUMNS:
        if column in names:
            return column
    raise ValueError(f"no column {', '.join(COLUMNS)}; there are {', '.join(names)}")
