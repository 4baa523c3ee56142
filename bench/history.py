"""Runs over time: import records, look at figures by device, bundle, metric and git revision, see where they changed.

python -m bench history runs/bench                        # every record in a folder into runs/history.sqlite
python -m bench history --metric picture.p50_s            # how it went, with change points
python -m bench history --bundle emoji-64 -o runs/history.csv
"""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench import record
from bench.changes import change_points
from bench.database import Database, Row, Wanted, opened
from bench.figures import PICTURE_S
from bench.record import Record
from kdc_edge.errors import UsageError, suggest
from kdc_edge.files import read_json, replace_file
from kdc_edge.markdown import table


@dataclass(frozen=True)
class HistoryConfig:
    """What to import, and what to show of all that is there."""

    records: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Records of bench run, or folders of them, to import; one that is there already stays as it is."""
    database: Path = Path("runs/history.sqlite")
    """One file; made where there is none."""
    device: str | None = None
    """Fingerprint of a machine, or part of its processor's name."""
    bundle: str | None = None
    """Name of a bundle, or the beginning of its id."""
    metric: str | None = None
    """A figure or the beginning of some: picture.p50_s, unet., peak_rss_mib, quality., ..."""
    revision: str | None = None
    """Beginning of the git revision that measured."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Write what was chosen: .jsonl or .csv, one figure a line."""


def history(config: HistoryConfig) -> dict[str, Any]:
    """Keep runs, and show how their figures went."""
    if config.output is not None and config.output.suffix not in WRITERS:
        raise UsageError(f"{config.output}: figures are written as {' or '.join(WRITERS)}")
    found = read_all(config.records)
    with opened(config.database, create=bool(config.records)) as database:
        added = database.add(found)
        wanted = Wanted(config.device, config.bundle, config.metric, config.revision)
        rows = chosen(database, wanted)
        kept = database.count()
    if config.records:
        print(f"{config.database}: {added} of {len(found)} runs are new, {kept} in all", file=sys.stderr)
    shown = rows if config.metric else [row for row in rows if row.metric == PICTURE_S]
    print(*summary(shown), sep="\n", file=sys.stderr)
    if config.output is not None:
        replace_file(config.output, WRITERS[config.output.suffix](rows).encode())
        print(f"{config.output}: {len(rows)} figures", file=sys.stderr)
    return {"database": str(config.database), "added": added, "runs": kept, "figures": len(rows)}


def read_all(paths: Sequence[Path]) -> list[Record]:
    """Every record, before anything is kept; in a folder what is no record is passed over, aloud."""
    return [found for path in paths for found in (_folder(path) if path.is_dir() else [record.read(path)])]


def _folder(path: Path) -> list[Record]:
    files = sorted(path.glob("*.json"))
    other = [file.name for file in files if not record.looks_like(read_json(file))]
    found = [record.read(file) for file in files if file.name not in other]
    if not found:
        raise UsageError(f"{path}: no records of bench run in it; python -m bench run BUNDLE -o {path} writes some")
    if other:
        print(f"{path}: passed over {', '.join(other)}: no records of bench run", file=sys.stderr)
    return found


def chosen(database: Database, wanted: Wanted) -> list[Row]:
    """Raises UsageError where nothing fits, naming the metric that was perhaps meant."""
    rows = database.rows(wanted)
    if not rows:
        known = database.metrics()
        known += sorted({f"{name.split('.')[0]}." for name in known if "." in name})
        near = "" if wanted.metric is None or wanted.metric in known else suggest(wanted.metric, known)
        asked = ", ".join(f"{field.name} {value}" for field in fields(wanted) if (value := getattr(wanted, field.name)))
        raise UsageError(f"the history has no figures of {asked or 'any run'}{near}")
    return rows


def series(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Finished runs by place, bundle and metric, in time."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.complete:
            found.setdefault(row.series, []).append(row)
    return found


def summary(rows: Sequence[Row]) -> list[str]:
    cells = []
    for run in series(rows).values():
        values, last = [row.value for row in run], run[-1]
        changes = [f"{run[i].created[:10]} ({_revision(run[i])})" for i in change_points(values)]
        bundle = f"{last.name} {last.precision} {last.bundle[:8]}"
        ends = (f"{values[0]:.6g}", f"{values[-1]:.6g}", ", ".join(changes) or "–")
        cells.append((bundle, f"{last.processor}, {last.how}", last.metric, str(len(run)), *ends))
    return table(("bundle", "device", "figure", "runs", "first", "last", "changed at"), cells)


def _revision(row: Row) -> str:
    return row.revision[:8] if row.revision else "revision unknown"


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(f"{json.dumps(asdict(row), ensure_ascii=False)}\n" for row in rows)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


WRITERS = {".jsonl": _jsonl, ".csv": _csv}
