"""Self-contained HTML pages: one template, sections, tables, pictures inside the page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

from kdc_edge.files import replace_file

TEMPLATE = Path(__file__).with_name("page.html")
COLOURS = 6  # of lines and their texts: classes line-0, text-0, …


def write(path: Path, title: str, sections: Sequence[str], head: str = "") -> int:
    """Atomic; returns the characters written. `head` is more of the page's head: styles, scripts."""
    body = "\n".join(sections)
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), head=head, body=body)
    replace_file(path, text.encode())
    return len(text)


def section(title: str, content: str, anchor: str = "") -> str:
    """`anchor` is what links name it by."""
    id = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{id}><h2>{escape(title)}</h2>{content}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(path: Path, label: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(label)}" title="{escape(label)}" src="data:image/png;base64,{data}">'


def escape(text: str) -> str:
    return html.escape(text)
