"""The retention table for eyes: coloured HTML, plain text for a terminal."""

from __future__ import annotations

from html import escape

from medcoss.evaluate.retention import Retention, Scores

_RANDOM = "random encoder"
_CHANCE = "most frequent class"


def retention_table(retention: Retention) -> str:
    """The table as text: a row a stage, then random encoder, chance and forgetting; reasons of blanks below."""
    rows: list[tuple[str, Scores]] = [(f"after {stage}", retention.scores[stage]) for stage in retention.stages]
    rows += [(_RANDOM, retention.random_encoder), (_CHANCE, retention.chance)]
    averages = retention.average()
    body = [["", *retention.modalities, "average"]]
    for place, (name, scores) in enumerate(rows):
        average = averages[retention.stages[place]] if place < len(retention.stages) else None
        cells = [_text(scores, modality) for modality in retention.modalities]
        body.append([name, *cells, "" if average is None else f"{average:.3f}"])
    forgetting = retention.forgetting()
    body.append(
        ["forgetting", *("" if (f := forgetting[m]) is None else f"{f:+.3f}" for m in retention.modalities), ""]
    )
    widths = [max(len(row[column]) for row in body) for column in range(len(body[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in body
    ]
    rule = "-" * len(lines[0])
    lines[1 + len(retention.stages) : 1 + len(retention.stages)] = [rule]
    return "\n".join([lines[0], rule, *lines[1:], *_reason_lines(retention)]) + "\n"


def retention_html(retention: Retention) -> str:
    """The table as HTML: the greener, the further above chance; beneath it the reasons of blanks."""
    header = "".join(f'<th class="n">{escape(modality)}</th>' for modality in retention.modalities)
    averages = retention.average()
    rows = [f'<tr><th></th>{header}<th class="n">average</th></tr>']
    for stage in retention.stages:
        cells = "".join(_cell(retention, stage, modality) for modality in retention.modalities)
        average = averages[stage]
        shown = "–" if average is None else f"{average:.3f}"
        rows.append(f'<tr><th>after {escape(stage)}</th>{cells}<td class="n">{shown}</td></tr>')
    for place, (name, scores) in enumerate(((_RANDOM, retention.random_encoder), (_CHANCE, retention.chance))):
        cells = "".join(f'<td class="n">{_text(scores, modality) or "–"}</td>' for modality in retention.modalities)
        rows.append(f'<tr class="base{"" if place else " rule"}"><th>{name}</th>{cells}<td class="n"></td></tr>')
    forgetting = retention.forgetting()
    cells = "".join(_forgotten(forgetting[modality]) for modality in retention.modalities)
    rows.append(f'<tr class="rule"><th>forgetting</th>{cells}<td class="n"></td></tr>')
    sizes = "".join(
        f'<td class="n"><small>{retention.n_bank.get(m, 0)} / {retention.n_query.get(m, 0)}</small></td>'
        for m in retention.modalities
    )
    rows.append(f"<tr><th><small>bank / queries</small></th>{sizes}<td></td></tr>")
    reasons = "".join(f"<li><small>{escape(line)}</small></li>" for line in _reason_lines(retention))
    notes = f"<p><small>No score (n/a):</small></p><ul>{reasons}</ul>" if reasons else ""
    return f'<div class="scroll"><table class="heat">{"".join(rows)}</table></div>{notes}'


def _text(scores: Scores, modality: str) -> str:
    if modality not in scores:
        return ""
    score = scores[modality]
    return "n/a" if score is None else f"{score:.3f}"


def _cell(retention: Retention, stage: str, modality: str) -> str:
    if modality not in retention.scores[stage]:
        return '<td class="n"></td>'
    score = retention.scores[stage][modality]
    if score is None:
        reason = retention.reasons[stage].get(modality, "")
        return f'<td class="n" style="background:#f1f3f5" title="{escape(reason)}"><small>n/a</small></td>'
    chance = retention.chance.get(modality) or 0.0
    above = max(0.0, min(1.0, (score - chance) / (1.0 - chance))) if chance < 1.0 else 0.0
    return f'<td class="n" style="background:{_shade(above)}">{score:.3f}</td>'


def _forgotten(value: float | None) -> str:
    if value is None:
        return '<td class="n"></td>'
    colour = "#a3341c" if value > 0.005 else "#2b7a4b" if value < -0.005 else "#5b6876"
    return f'<td class="n" style="color:{colour}">{value:+.3f}</td>'


def _shade(share: float) -> str:
    """From nearly white (at chance) to green (perfect); dark text stays readable on all of it."""
    low, high = (246, 248, 246), (120, 198, 151)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def _reason_lines(retention: Retention) -> list[str]:
    """One line for each distinct reason of a blank, with the modality it stands for."""
    found = [
        f"{modality}: {reason}" for stage in retention.stages for modality, reason in retention.reasons[stage].items()
    ]
    return list(dict.fromkeys(found))
