"""Every Swift and Kotlin file parses; whether it compiles is for test_swift and test_kotlin, where the toolchains are."""

from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_kotlin
import tree_sitter_swift

APPS = Path(__file__).parents[2] / "apps"
LANGUAGES = {".swift": tree_sitter_swift, ".kt": tree_sitter_kotlin, ".kts": tree_sitter_kotlin}
BUILT = {"node_modules", ".build", "build", ".gradle"}
MAX_LINES, MAX_WIDTH = 400, 130


def sources():
    found = [path for path in APPS.rglob("*") if path.suffix in LANGUAGES and not BUILT & set(path.parts)]
    return sorted(found)


def broken(node):
    """The first node that is no syntax of the language."""
    if node.type == "ERROR" or node.is_missing:
        return node
    return next((found for child in node.children if child.has_error and (found := broken(child))), None)


def errors(text, suffix):
    tree = tree_sitter.Parser(tree_sitter.Language(LANGUAGES[suffix].language())).parse(text)
    node = broken(tree.root_node) if tree.root_node.has_error else None
    return None if node is None else (node.start_point.row + 1, node.text[:60])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(APPS)))
def test_it_parses_and_reads_in_one_sitting(path):
    assert errors(path.read_bytes(), path.suffix) is None
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert [i + 1 for i, line in enumerate(lines) if len(line) > MAX_WIDTH] == []


@pytest.mark.parametrize(("suffix", "text"), [(".swift", b"func f( { let }"), (".kt", b"fun f( { val }")])
def test_what_does_not_parse_is_found(suffix, text):
    assert errors(text, suffix) is not None


def test_the_logic_names_no_framework():
    """Core modules: no Apple framework but Foundation, which Linux has, and nothing of Android or onnxruntime."""
    for path in sources():
        imports = [
            line.split()[1] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("import ")
        ]
        if "KdcCore" in path.parts:
            assert set(imports) <= {"Foundation"}, path
        if "core/src/main" in path.as_posix() and path.suffix == ".kt":
            assert all(name.startswith(("java.", "kotlin.")) for name in imports), path
