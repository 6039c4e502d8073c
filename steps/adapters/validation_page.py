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
.gate.closed { border-color: var(--bad); } .gate.warned { border-color: #9a6700; margin-top: .6rem; }
.gate ul { margin: .3rem 0; }
.fa-check-circle::before { content: "\\2713"; } .text-success { color: var(--ok); }
.fa-times::before { content: "\\2717"; } .text-danger { color: var(--bad); }
.fa-exclamation-triangle::before { content: "!"; } .text-warning { color: #9a6700; }
.badge { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .3rem; margin: 0 .1rem; }
.collapse { display: block; } a[data-toggle] { display: none; } i { font-style: normal; }
"""

_CRITICAL = (
    "Critical ones are the gate; warnings and information are reported. What the columns mean: 1 = the row breaks the "
    "rule, 0 = it does not, null = it was not measured."
)
DRIFT_HERE = "<!-- drift -->"
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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Validation</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Validation</h1>\n{_gate(content)}"
        f'<h2>Counts</h2><div class="counts">{counts}</div>\n'
        f"<h2>Rules</h2>{_rules(content)}\n{DRIFT_HERE}\n"
        f"<h2>First rows that may not teach</h2>{_offenders(content['offending_rows'])}\n"
        f"<h2>Expectations</h2><p>{_CRITICAL}</p>{_expectations(checked)}</body></html>\n"
    )


def add_drift(page: str, drift: dict[str, Any], checked: "ExpectationSuiteValidationResult | None") -> str:
    """The page of a validation with a section about drift.

    Args:
        page: As ``render_page`` gave it.
        drift: What ``drift.json`` holds.
        checked: The expectations on drift; None = there is nothing to compare with.
    """
    if checked is None:
        section = "<p>No accepted run of this name to compare with.</p>"
    else:
        rows = [
            (
                item["name"], *("" if item[key] is None else f"{item[key]:.2%}" for key in ("before", "now")),
                f"{item['distance']:+.4f}", f"{item['bound']:.4f}",
                "" if item["p_value"] is None else f"{item['p_value']:.2g}",
                f"drifted: {item['action']}" if item["has_drifted"] else "no drift",
            )
            for item in drift["measures"]
        ]  # fmt: skip
        header = ("measure", "before", "now", "difference or PSI", "bound", "p", "finding")
        section = _table(header, rows) + _expectations(checked)
    reasons = drift["reasons"] + drift["warnings"]
    style = "gate closed" if drift["reasons"] else "gate warned"
    found = f'<div class="{style}"><b>Drift</b>{_list(reasons)}</div>' if reasons else ""
    return page.replace(DRIFT_HERE, f"<h2>Drift against the last accepted run</h2>{found}{section}", 1)


def _gate(content: dict[str, Any]) -> str:
    released = f", {content['num_released']:,} of them released by a person" if content["num_released"] else ""
    kept = f"{content['verdicts']['keep']:,} of {content['num_rows']:,} rows may teach{released}"
    is_open, reasons = content["gate"]["is_open"], content["gate"]["reasons"]
    verdict = f"<b>The gate is {'open' if is_open else 'closed'}</b>: {kept}."
    gate = f'<div class="gate{"" if is_open else " closed"}">{verdict}{_list(reasons)}</div>'
    warned = (
        f'<div class="gate warned"><b>Warnings</b>{_list(content["warnings"])}</div>' if content["warnings"] else ""
    )
    return gate + warned


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _rules(content: dict[str, Any]) -> str:
    rows = []
    for name, counts in content["rules"].items():
        threshold, measured = content["thresholds"][name], counts["measured"]
        share = counts["broken"] / measured if measured else 0.0
        bound = threshold["max_fraction"]
        is_breached = bool(measured) and bound is not None and share > bound
        rows.append((
            name, counts["broken"], measured, f"{share:.2%}" if measured else "not measured",
            "any" if bound is None else f"{bound:.1%}", threshold["rows"],
            f"{threshold['on_breach']}{'!' if is_breached else ''}",
        ))  # fmt: skip
    return _table(("rule", "rows that break it", "of", "share", "allowed", "such a row", "above"), rows)


def _table(header: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def _offenders(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    columns = ("verdict", "prompt_id", "sample_idx", "reason", "also", "question", "text")
    table = _table(columns, ([_joined(row[column]) for column in columns] for row in rows))
    return f'<div class="rows">{table}</div>'


def _joined(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


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
