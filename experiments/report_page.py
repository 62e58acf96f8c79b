"""The report as one HTML file that needs nothing else: no network, no script."""

import html
from collections.abc import Sequence

from experiments.report_figures import draw_loss, draw_metric, svg
from experiments.report_runs import Group, by_data
from experiments.report_tables import PROTOCOL, Table

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 88rem;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82em;
  font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3em 0.5em; text-align: left;
  vertical-align: top; }
td { white-space: nowrap; }
td:last-child { min-width: 14em; overflow-wrap: anywhere; white-space: normal; }
tbody tr.ours { background: var(--soft); font-weight: 600; }
.note { font-size: 0.9em; max-width: 60rem; opacity: 0.8; }
.panels { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.panels svg { height: auto; max-width: 100%; }
"""


def page(title: str, tables: Sequence[Table], groups: Sequence[Group]) -> str:
    """Return the page: the tables, then curves for each data."""
    parts = [_table(table) for table in tables]
    parts += ["<h2>Curves</h2>"]
    for number, (name, of_data) in enumerate(by_data(groups).items()):
        run = of_data[0].first
        heading = html.escape(f"{name} ({run.provenance})")
        panels = [
            svg(draw_axes, of_data, f"f{number}{kind}")
            for kind, draw_axes in (("l", draw_loss), ("m", draw_metric))
        ]
        parts.append(f'<h3>{heading}</h3>\n<div class="panels">{"".join(panels)}</div>')
    title, body = html.escape(title), "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="note">{html.escape(PROTOCOL)}</p>
{body}
</body>
</html>
"""


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col">{html.escape(name)}</th>' for name in table.columns
    )
    rows = "\n".join(_row(cells) for cells in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"""<h2>{html.escape(table.title)}</h2>
<div class="scroll">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
{note}"""


def _row(cells: Sequence[str]) -> str:
    ours = ' class="ours"' if cells[0].endswith("(ours)") else ""
    return f"<tr{ours}>{''.join(f'<td>{html.escape(c)}</td>' for c in cells)}</tr>"
