"""The page of a validation: gate, counts, first offending rows, and the tables of Great Expectations.

Great Expectations' own page takes its style and scripts from other hosts. This one holds its style itself and needs
no script, so that it can be read without a network.
"""

import re
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --ok: #1a7f37; --bad: #cf222e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h5, h6 { font-size: 1rem; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.counts { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
.counts table { width: auto; min-width: 12rem; }
.rows td:nth-child(-n+3) { overflow-wrap: normal; white-space: nowrap; }
.gate { padding: .6rem 1rem; border-left: .4rem solid var(--ok); background: #8881; }
.gate.closed { border-color: var(--bad); }
.fa-check-circle::before { content: "\\2713"; } .text-success { color: var(--ok); }
.fa-times::before { content: "\\2717"; } .text-danger { color: var(--bad); }
.fa-exclamation-triangle::before { content: "!"; } .text-warning { color: #9a6700; }
.badge { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .3rem; margin: 0 .1rem; }
.collapse { display: block; } a[data-toggle] { display: none; } i { font-style: normal; }
"""

_CRITICAL = (
    "Those on the columns, the ids, the outcomes, the number of rows, is_kept, is_failed and is_refused are the gate; "
    "the others are reported."
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def render_page(content: dict[str, Any], checked: "ExpectationSuiteValidationResult") -> str:
    """The page as HTML.

    Args:
        content: What ``result.json`` holds.
        checked: The result as Great Expectations gave it.

    Returns:
        A whole document that refers to nothing outside itself; the same result gives the same text.
    """
    counts = "".join(
        _table((title, "rows"), content[key].items())
        for title, key in (("outcome", "outcomes"), ("verdict", "verdicts"), ("kept, by side", "kept_by_side"))
    )
    measures = _table(("measured among the others", "rows"), content["measures"].items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Validation</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Validation</h1>\n{_gate(content)}"
        f'<h2>Counts</h2><div class="counts">{counts}{measures}</div>\n'
        f"<h2>First rows that may not teach</h2>{_offenders(content['offending_rows'])}\n"
        f"<h2>Expectations</h2><p>{_CRITICAL}</p>{_expectations(checked)}</body></html>\n"
    )


def _gate(content: dict[str, Any]) -> str:
    if content["gate"]["is_open"]:
        kept = f"{content['verdicts']['keep']} of {content['num_rows']} rows may teach"
        return f'<p class="gate"><b>The gate is open</b>: {kept}.</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in content["gate"]["reasons"])
    return f'<div class="gate closed"><b>The gate is closed</b><ul>{reasons}</ul></div>'


def _table(header: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def _offenders(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    columns = ("verdict", "prompt_id", "sample_idx", "reason", "question", "text")
    table = _table(columns, ([row[column] for column in columns] for row in rows))
    return f'<div class="rows">{table}</div>'


def _expectations(checked: "ExpectationSuiteValidationResult") -> str:
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaSectionView

    document = ValidationResultsPageRenderer().render(checked).to_json_dict()
    view, index = DefaultJinjaSectionView(), count(1)
    # The first section repeats run times and paths.
    sections = [
        view.render({"section": section, "section_loop": {"index": next(index)}})
        for section in document["sections"][1:]
    ]
    numbers: dict[str, str] = {}
    return _UUID.sub(lambda found: numbers.setdefault(found[0], str(len(numbers))), "".join(sections))
