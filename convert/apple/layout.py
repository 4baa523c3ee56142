"""The folder that Apple's Swift package reads: Resources/ with packages and vocabulary, and a script that compiles them."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from kdc_edge.runtimes.apple import RESOURCES, VOCABULARY

SCRIPT = "compile.sh"
COMPILE = """\
#!/bin/sh
# Compiles Resources/*.mlpackage to *.mlmodelc beside this script's folder. On a Mac with Xcode: ./compile.sh OUTPUT
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?"usage: $0 OUTPUT, a folder outside the bundle"}
command -v xcrun >/dev/null || { echo "$0: xcrun is missing; install Xcode" >&2; exit 3; }
mkdir -p "$out"
for package in "$here"/Resources/*.mlpackage; do
  xcrun coremlcompiler compile "$package" "$out"
done
cp "$here"/Resources/vocab.json "$here"/Resources/merges.txt "$out"
"""


def write_resources(folder: Path) -> None:
    """What stands beside the packages; the tokenizer is there already."""
    for name in VOCABULARY:
        shutil.copyfile(folder / "tokenizer" / name, folder / RESOURCES / name)
    (folder / SCRIPT).write_text(COMPILE, encoding="utf-8")
    (folder / SCRIPT).chmod(0o755)


def files_of(folder: Path, packages: Iterable[str]) -> tuple[str, ...]:
    """Every file of these packages, by its path in the bundle."""
    roots = (folder / RESOURCES / f"{name}.mlpackage" for name in packages)
    return tuple(
        sorted(path.relative_to(folder).as_posix() for root in roots for path in root.rglob("*") if path.is_file())
    )
