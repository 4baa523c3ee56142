"""Build the emoji-64 data set: every fully-qualified emoji of a font, rendered and captioned.

    python -m train.emoji -o assets/emoji-64.tar        # about a minute

One tar in the `imagefolder` convention (pictures beside a `metadata.jsonl`), byte for byte reproducible from the same
font, `emoji-test.txt` and Pillow. Columns: `file_name`, `text` (the CLDR name), `group`, `subgroup`, `base` (the name
without skin tones), `tone` (the skin tones, joined by ", "; empty for none), `split` (`train`, or `generalisation` for the
tenth of the toned emoji that generators never see).
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont, features

from kdc_edge import command
from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.files import replace_file

STRIKE = 109  # Noto's bitmaps exist at this size only
CANVAS, CROP = 160, 136
HELD_OUT = 10  # one toned emoji in ten
LINE = re.compile(r"^(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (?P<name>.+)$")
TONE = re.compile(r"(?:light|medium-light|medium|medium-dark|dark) skin tone")


@dataclass(frozen=True)
class EmojiConfig:
    """Where the glyphs and their names come from."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Tar file to write."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """Colour emoji font (Debian: fonts-noto-color-emoji)."""
    names: Path = Path("/usr/share/unicode/emoji/emoji-test.txt")
    """Unicode's emoji-test.txt (Debian: unicode-data)."""
    size: int = 64
    """Side of the pictures, pixels."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class Emoji:
    """One row of `metadata.jsonl`."""

    file_name: str
    text: str
    group: str
    subgroup: str
    base: str
    tone: str
    split: str


def parse(lines: Iterator[str]) -> Iterator[tuple[str, Emoji]]:
    """The fully-qualified emoji of an `emoji-test.txt`: (character sequence, row)."""
    group = subgroup = ""
    for line in lines:
        if line.startswith("# group: "):
            group = line[9:].strip()
        elif line.startswith("# subgroup: "):
            subgroup = line[12:].strip()
        elif match := LINE.match(line):
            yield row(match["codes"].split(), match["name"].strip(), group, subgroup)


def row(codes: list[str], name: str, group: str, subgroup: str) -> tuple[str, Emoji]:
    """`thumbs up: dark skin tone` has base `thumbs up` and tone `dark skin tone`; both sides keep other qualifiers."""
    tones = TONE.findall(name)
    head, _, tail = name.partition(": ")
    rest = ", ".join(part for part in tail.split(", ") if part and not TONE.fullmatch(part))
    base = (f"{head}: {rest}" if rest else head) if tones else name
    file_name = "-".join(codes).lower()
    held_out = bool(tones) and int(hashlib.sha256(file_name.encode()).hexdigest(), 16) % HELD_OUT == 0
    split = "generalisation" if held_out else "train"
    text = "".join(chr(int(code, 16)) for code in codes)
    return text, Emoji(f"{file_name}.webp", name, group, subgroup, base, ", ".join(tones), split)


def render(text: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image:
    """The glyph of `text`, centred on white, `size`×`size` RGB."""
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, embedded_color=True)
    draw.text(((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2), text, font=font, embedded_color=True)
    white = Image.new("RGBA", canvas.size, "white")
    margin = (CANVAS - CROP) // 2
    picture = Image.alpha_composite(white, canvas).crop((margin, margin, CANVAS - margin, CANVAS - margin))
    return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def open_font(path: Path) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):
        raise MissingBackend("this Pillow was built without raqm, so joined emoji would fall apart; pip install pillow")
    if not path.is_file():
        raise MissingBackend(f"{path}: no such font; on Debian: apt install fonts-noto-color-emoji, else pass --font")
    return ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.RAQM)


def build(config: EmojiConfig) -> dict[str, object]:
    """Render every emoji and write the tar; returns counts and the file's SHA-256."""
    if config.output.exists() and not config.force:
        raise UsageError(f"{config.output} exists; pass --force to replace it")
    if not config.names.is_file():
        raise MissingBackend(f"{config.names}: not found; on Debian: apt install unicode-data, else pass --names")
    font = open_font(config.font)
    with config.names.open(encoding="utf-8") as lines:
        emoji = list(parse(lines))
    if not emoji:
        raise BundleError(f"{config.names}: no fully-qualified emoji in it; is it Unicode's emoji-test.txt?")
    pictures = {record.file_name: render(text, font, config.size) for text, record in emoji}
    blank = [name for name, picture in pictures.items() if np.ptp(np.asarray(picture)) == 0]
    if blank:
        raise BundleError(
            f"{config.font}: {len(blank)} emoji have no glyph, the first {blank[0]}; a newer font has them"
        )
    data = pack([record for _, record in emoji], pictures)
    replace_file(config.output, data)
    held_out = sum(record.split == "generalisation" for _, record in emoji)
    return {
        "pictures": len(emoji),
        "held_out": held_out,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def pack(records: list[Emoji], pictures: dict[str, Image.Image]) -> bytes:
    """A tar of lossless WebP and `metadata.jsonl`, without times or owners."""
    metadata = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "metadata.jsonl", metadata.encode())
        for record in records:
            encoded = io.BytesIO()
            pictures[record.file_name].save(encoded, "WEBP", lossless=True, quality=80, method=6)
            add(tar, record.file_name, encoded.getvalue())
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def main(argv: list[str] | None = None) -> None:
    command.run(build, argv, prog="python -m train.emoji")


if __name__ == "__main__":
    main()
