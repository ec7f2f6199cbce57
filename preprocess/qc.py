"""`qc/index.html`: what a person looks at before training on a set. One file, no script, no link to anything outside.

It shows what the shards hold (a contact sheet of samples), the distributions that betray a wrong setting, and why
files were left out. Nothing is in it that the set itself does not hold.
"""

from __future__ import annotations

import html
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medcoss.contracts import SPLITS, Kind
from medcoss.shards import Manifest, Sample
from preprocess import sheet
from preprocess.assemble import Assembly, Placed
from preprocess.conversion import Status
from preprocess.outcomes import count_reasons
from preprocess.progress import counted
from preprocess.reasons import REASONS

SHEET_SAMPLES = 30
_LABEL_ROWS = 20
_MEANING = {
    Status.SKIPPED: "rightly not a sample",
    Status.FAILED: "should have been a sample: look at these",
    Status.WRITTEN: "gave samples, but not all that it holds",
}
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:80rem;margin:1.5rem auto;padding:0 1rem;color:#1c2733;
background:#fff}h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .6rem}p{margin:.4rem 0;max-width:50rem}
.wide{overflow-x:auto}table{border-collapse:collapse}th{font-weight:600;color:#536273}td,th{padding:.25rem .9rem .25rem
0;text-align:left;border-bottom:1px solid #d9dfe5;vertical-align:top}td.n,th.n{text-align:right}tr.failed td:first-child
{color:#a3231b;font-weight:600}.note{border-left:4px solid #d99a2b;background:#fdf6e8;padding:.3rem .7rem}
.sheet,.text,.charts{display:grid;gap:1rem .8rem;grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.text{grid-template-columns:repeat(auto-fill,minmax(300px,1fr))}.charts{grid-template-columns:repeat(auto-fill,minmax(
min(330px,100%),1fr))}figure{margin:0;min-width:0}img{display:block;max-width:100%;height:auto}.sheet img{width:100%}
figcaption{font-size:.75rem;color:#536273;margin-top:.2rem;overflow-wrap:anywhere}blockquote{margin:0;padding:.1rem 0
.1rem .7rem;border-left:3px solid #c4ced8;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.9rem}code{font-size:
.85em;overflow-wrap:anywhere}mark{background:#e8edf2;color:#536273}summary{cursor:pointer;color:#33658a}
"""


def write_qc(
    directory: Path, manifest: Manifest, samples: Sequence[Sample], assembly: Assembly, inputs: Sequence[str]
) -> None:
    """Write `directory`/index.html. `samples` are some of the set's, as stored; `inputs` the names of the attachments,
    which lie in `directory`/inputs already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = manifest.kind is Kind.SEQUENCE
    total = sum(entry.samples for entry in manifest.splits.values())
    parts = [
        f"<h1>{manifest.name}: {counted(total, 'sample')}</h1>",
        _summary(manifest, assembly),
        _labels(assembly.splits),
        "<h2>Files left out, wholly or in part</h2>",
        _reasons(count_reasons(fate.outcome for fate in assembly.fates.values())),
        _counts(assembly.counts),
        f"<h2>Samples as stored ({len(samples)} of {total:,})</h2>",
        f'<div class="{"text" if texts else "sheet"}">{"".join(sheet.figure(s, manifest.kind) for s in samples)}</div>',
        _inputs(inputs),
        "<h2>Distributions</h2>",
        "<p>Copies that were left out are counted here.</p>" if assembly.duplicates and assembly.figures else "",
        sheet.histograms(assembly.figures),
        _settings(manifest),
    ]
    title = f"{manifest.name} {manifest.fingerprint[:12]}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>QC {title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    (directory / "index.html").write_text(page, encoding="utf-8")


def _summary(manifest: Manifest, assembly: Assembly) -> str:
    rows = [
        (name, f"{entry.samples:,}", f"{entry.subjects:,}", f"{len(entry.shards):,}")
        for name, entry in ((name, manifest.splits[name]) for name in SPLITS)
    ]
    files = ", ".join(f"{manifest.inputs[name]:,} {name}" for name in ("read", "written", "skipped", "failed"))
    parts = [
        f"<p>Files: {files}. Fingerprint <code>{manifest.fingerprint}</code></p>",
        _table(("split", "samples", "subjects", "shards"), rows, numbers=3),
    ]
    parts += [f'<p class="note">{note}</p>' for note in _notes(manifest, assembly)]
    return "".join(parts)


def _notes(manifest: Manifest, assembly: Assembly) -> Iterable[str]:
    asked = manifest.settings.get("split")
    for name in SPLITS:
        part = asked.get(name, 0) if isinstance(asked, dict) else 0
        if part and not manifest.splits[name].samples:
            yield (
                f"Split {name} is empty: {100 * part:.3g} % of the subjects were asked for, and none was drawn or "
                "given. With few subjects that is chance; --split or a table's column <code>split</code> changes it."
            )
    if assembly.unknown_subjects:
        yield (
            f"{counted(assembly.unknown_subjects, 'sample')} without a known patient: each study, row or file counts "
            "as one, so a patient may be in several splits. See --subject-from and --subject-column."
        )
    if assembly.duplicates:
        yield f"{counted(assembly.duplicates, 'copy', 'copies')} of other samples left out."
    if assembly.conflicts:
        yield f"{counted(assembly.conflicts, 'sample')} kept without labels on which copies disagree."


def _labels(splits: Mapping[str, Sequence[Placed]]) -> str:
    """Samples by label and split, so that a class that is missing from a split is seen."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: {name: Counter() for name in SPLITS})
    for split, placed in splits.items():
        for text, number in Counter(one.sample.labels for one in placed).items():
            for column, value in json.loads(text).items():
                counts[column][split][str(value)] += number
    parts = []
    for column, by_split in sorted(counts.items()):
        total: Counter[str] = sum(by_split.values(), Counter())
        shown = total.most_common(_LABEL_ROWS)
        rows = [(value, *(f"{by_split[split][value]:,}" for split in SPLITS), f"{number:,}") for value, number in shown]
        if len(total) > len(shown):
            rest = [by_split[split].total() - sum(by_split[split][value] for value, _ in shown) for split in SPLITS]
            other = counted(len(total) - len(shown), "other value")
            rows.append((other, *(f"{number:,}" for number in (*rest, sum(rest)))))
        without = [len(splits[split]) - by_split[split].total() for split in SPLITS]
        rows.append(("no label", *(f"{number:,}" for number in (*without, sum(without)))))
        parts.append(_table((column, *SPLITS, "all"), rows, numbers=4))
    return "<h2>Samples by label</h2>" + "".join(parts) if parts else ""


def _reasons(reasons: Sequence[tuple[str, str, int]]) -> str:
    if not reasons:
        return "<p>None: every file became samples or part of one.</p>"
    statuses = [status for status in Status if any(found == status for found, _, _ in reasons)]
    told = "; ".join(f"<b>{status}</b>: {_MEANING[status]}" for status in statuses)
    # Failures first: they are what a person must act on.
    order = (Status.FAILED, Status.WRITTEN, Status.SKIPPED)
    ordered = sorted(reasons, key=lambda row: order.index(Status(row[0])))
    rows = [(status, reason, f"{number:,}", REASONS.get(reason, "")) for status, reason, number in ordered]
    table = _table(("status", "reason", "files", "meaning"), rows, numbers=(2,), classes=[row[0] for row in rows])
    return f"<p>{told}. Which files these are: <code>input_id</code> in outcomes.parquet names them, and the private \
inputs.csv beside the set says where each lies.</p>{table}"


def _counts(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return "<h2>Inside the files</h2>" + _table(
        ("what", "number"), [(n, f"{c:,}") for n, c in counts.items()], numbers=1
    )


def _inputs(inputs: Sequence[str]) -> str:
    beside: dict[str, list[str]] = defaultdict(list)
    for name in inputs:
        beside[name.partition(".")[0]].append(name)
    pictures = [name for name in inputs if name.endswith(".jpg")]
    if not pictures:
        return ""
    step = max(1.0, len(pictures) / SHEET_SAMPLES)
    chosen = [pictures[int(place * step)] for place in range(min(len(pictures), SHEET_SAMPLES))]
    shown = []
    for name in chosen:
        stem = name.partition(".")[0]
        links = " ".join(f'<a href="inputs/{o}">{o.partition(".")[2]}</a>' for o in beside[stem] if o != name)
        shown.append(
            f'<figure><a href="inputs/{name}"><img alt="Overview of input {stem[:10]}" loading="lazy" '
            f'src="inputs/{name}"></a><figcaption>{stem[:10]}… {links}</figcaption></figure>'
        )
    return f'<h2>Inputs as a whole ({len(chosen)} of {len(pictures):,})</h2><div class="sheet">{"".join(shown)}</div>'


def _settings(manifest: Manifest) -> str:
    rows = [(name, json.dumps(value)) for name, value in sorted(manifest.settings.items())]
    return (
        f"<h2>Settings</h2><details><summary>{len(rows)} settings</summary>{_table(('name', 'value'), rows)}</details>"
    )


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int | Sequence[int] = 0, classes: Sequence[str] = ()
) -> str:
    """`numbers` are the columns that hold numbers, or how many of the last ones do; `classes` are the rows' own."""
    right = range(len(head) - numbers, len(head)) if isinstance(numbers, int) else numbers

    def cell(tag: str, place: int, text: str) -> str:
        return f"<{tag}{' class=n' if place in right else ''}>{html.escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", place, text) for place, text in enumerate(head)) + "</tr>"]
    for number, row in enumerate(rows):
        own = f' class="{classes[number]}"' if classes else ""
        lines.append(f"<tr{own}>" + "".join(cell("td", place, text) for place, text in enumerate(row)) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
