"""The page of one reproduced figure or table."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from consistune.pages.demo import STYLE
from consistune.pages.plots import Drawing, Planes


def experiment_page(
    record: dict[str, Any], about: str, plots: Mapping[str, Drawing], pictures: Mapping[str, bytes]
) -> str:
    """One self-contained page.

    Args:
        record: what data.json holds.
        about: what is drawn and how to read it.
        pictures: title → PNG.
    """
    title = html.escape(record["title"])
    paper = record["paper"]
    drawn = "".join(
        f'<figure class="{"wide" if isinstance(plot, Planes) else ""}">{plot.svg()}</figure>'
        for plot in plots.values()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}
td.text {{ text-align: left; white-space: normal; }}
.wide {{ grid-column: 1 / -1; max-width: 54rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}</style></head><body>
<h1>{title}</h1>
<p><strong>The paper, {html.escape(paper["figure"])}:</strong> {html.escape(paper["claim"])}</p>
<p>{html.escape(about)}</p>
{"".join(f'<p class="soft">{html.escape(note)}</p>' for note in record["notes"])}
<div class="plots">{drawn}</div>
<div class="pictures">{"".join(_picture(name, data) for name, data in pictures.items())}</div>
<h2>Figures, mean over seeds</h2>
<div class="scroll">{table(record["summary"])}</div>
<p class="soft">Each seed's figures are in data.csv, these in data.json.</p>
<h2>To repeat it</h2>
<pre>{html.escape(_facts(record))}</pre>
</body></html>
"""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one kind as an HTML table; a deviation stands with its mean."""
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if not c.endswith("_std")]
    head = "".join(f"<th>{html.escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(_cell(row, column) for column in columns)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(row: Mapping[str, Any], column: str) -> str:
    value, spread = row.get(column), row.get(f"{column}_std")
    if isinstance(value, str):
        return f'<td class="text">{html.escape(value)}</td>'
    if value is None:
        return "<td>–</td>"
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return f"<td>{text}</td>" if spread is None else f"<td>{text} ± {spread:.2g}</td>"


def _picture(name: str, data: bytes) -> str:
    label = html.escape(name)
    source = base64.b64encode(data).decode()
    return (
        f'<figure><img alt="Samples: {label}" src="data:image/png;base64,{source}">'
        f"<figcaption>{label}</figcaption></figure>"
    )


def _facts(record: dict[str, Any]) -> str:
    hardware = record["hardware"]
    devices = ", ".join(hardware["devices"]) or "no GPU"
    lines = [
        record["command"],
        f"code {record['code']}, torch {hardware['torch']}, {hardware['processor']}, "
        f"{hardware['threads']} thread(s) of {hardware['cores']} cores, {devices}",
        f"seeds {record['seeds']}, images seen a run {record['images']:,}, "
        f"by its teacher {record['teacher_images']:,}, {record['minutes']:.1f} minutes in all",
        *(f"recipe of {name}: {digest}" for name, digest in record["recipes"].items()),
    ]
    return "\n".join(lines)
