"""HTML of results in notebooks.

Tables have no colors, so that they are readable on light and dark pages. Text is
escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def html_table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """A table with a heading of columns."""
    title = f"<caption style='text-align: left'><b>{escape(caption)}</b></caption>"
    heads = "".join(f"<th scope='col' style='text-align: left'>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    head_row = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    return f"<table>{title if caption else ''}{head_row}<tbody>{body}</tbody></table>"


def html_facts(facts: Mapping[str, Any], caption: str = "") -> str:
    """A table of names and values; values of None are left out."""
    rows = "".join(
        f"<tr><th scope='row' style='text-align: left'>{escape(name)}</th>{_cell(value)}</tr>"
        for name, value in facts.items()
        if value is not None
    )
    title = f"<caption style='text-align: left'><b>{escape(caption)}</b></caption>"
    return f"<table>{title if caption else ''}<tbody>{rows}</tbody></table>"


def html_paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def _cell(value: Any) -> str:
    text = escape(str(value)).replace("\n", "<br>")
    return f"<td style='text-align: left; vertical-align: top'>{text}</td>"
