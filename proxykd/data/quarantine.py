"""The rows that may not teach, as an artifact that a person can read: Parquet, JSONL, and a page.

The page shows the first rows of each verdict; the JSONL file has them all, one a line, in the order of the run.
"""

import json
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxykd.artifacts import QuarantineSet, ValidatedSet, seal
from proxykd.data.judging import question_of
from proxykd.records import ValidatedRow

ROWS, PAGE = "rows.jsonl", "index.html"

ROWS_PER_VERDICT = 100
"""Rows of each verdict on the page."""
_CHARS = 1500

_STYLE = """
:root { color-scheme: light dark; --line: #8885; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
article { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem 1rem; margin: .8rem 0; }
article ul { margin: .3rem 0; padding-left: 1.2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; padding: .4rem .6rem; background: #8881; }
code { background: #8881; padding: 0 .2rem; }
"""


def build_quarantine(validated: ValidatedSet, *, output: Path) -> QuarantineSet:
    """Write every row of ``validated`` with another verdict than "keep".

    Args:
        validated: Rows with verdicts.
        output: Folder of the new artifact.
    """
    quarantine = QuarantineSet(output)
    output.mkdir(parents=True, exist_ok=True)
    verdicts: Counter[str] = Counter()
    articles: dict[str, list[str]] = {}
    with (
        pq.ParquetWriter(output / "part-00000.parquet", ValidatedRow.schema) as writer,
        (output / ROWS).open("w", encoding="utf-8") as lines,
    ):
        for batch in _dropped(validated):
            writer.write_batch(batch)
            for row in map(ValidatedRow.from_row, batch.to_pylist()):
                lines.write(json.dumps(describe(row), ensure_ascii=False) + "\n")
                verdicts[row.verdict] += 1
                if len(shown := articles.setdefault(row.verdict, [])) < ROWS_PER_VERDICT:
                    shown.append(_article(row))
    (output / PAGE).write_text(_page(verdicts, articles), encoding="utf-8")
    seal(quarantine, {"validated": validated.hash})
    return quarantine


def describe(row: ValidatedRow) -> dict[str, Any]:
    """A row as a JSON object for people."""
    return {
        "prompt_id": row.prompt_id,
        "sample_idx": row.sample_idx,
        "verdict": row.verdict,
        "findings": [{"rule": f.rule, "detail": f.detail, "drops": f.drops} for f in row.findings],
        "question": question_of(row.messages),
        "text": row.text,
    }


def _dropped(validated: ValidatedSet) -> Iterator[pa.RecordBatch]:
    for batch in validated.batches():
        if (found := batch.filter(pc.not_equal(batch["verdict"], "keep"))).num_rows:
            yield found


def _page(verdicts: Counter[str], articles: dict[str, list[str]]) -> str:
    if not articles:
        body = "<p>Nothing: every row may teach.</p>"
    else:
        body = (
            f"<p>{verdicts.total():,} rows may not teach. All of them are in <code>{ROWS}</code>. To let one teach, "
            'put a line <code>{"prompt_id": "...", "sample_idx": 0, "by": "who", "reason": "why"}</code> into the file '
            "that <code>validation.release</code> names, and run again.</p>"
        )
    sections = (
        f"<h2>{escape(verdict)}: {verdicts[verdict]:,} rows"
        f"{f', the first {len(shown)}' if len(shown) < verdicts[verdict] else ''}</h2>{''.join(shown)}"
        for verdict, shown in articles.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Quarantine</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Quarantine</h1>\n{body}{''.join(sections)}</body></html>\n"
    )


def _article(row: ValidatedRow) -> str:
    findings = "".join(
        f"<li><b>{escape(f.rule)}</b>{'' if f.drops else ' (only counted)'}: {escape(f.detail)}</li>"
        for f in row.findings
    )
    return (
        f"<article><code>{row.prompt_id}</code>, sample {row.sample_idx}<ul>{findings}</ul>"
        f"<pre>{escape(question_of(row.messages)[:_CHARS])}</pre><pre>{escape(row.text[:_CHARS])}</pre></article>\n"
    )
