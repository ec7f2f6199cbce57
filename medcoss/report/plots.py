"""Plots as PNG bytes: losses of a stage, throughput of all stages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medcoss.report.record import Source, StageRecord

PALETTE = ("#2563ab", "#c2571a", "#2f8f5b", "#8a4fa3", "#b3892b", "#b23a58", "#3b9aa5", "#6b6f76")
_INK, _GRID = "#27323f", "#dfe4ea"
_DPI = 130

matplotlib.rcParams.update({"font.size": 9, "axes.edgecolor": "#9aa5b1", "text.color": _INK, "axes.labelcolor": _INK})


def colours(modalities: Sequence[str]) -> dict[str, str]:
    """One colour a modality, the same in every plot of a report."""
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(dict.fromkeys(modalities))}


def losses(stage: StageRecord, palette: Mapping[str, str]) -> bytes | None:
    """Loss against step: pretext losses left, distillation losses right; None without measurements."""
    panels: list[tuple[str, list[tuple[Source, list[float | None]]]]] = []
    for title, values in (
        ("pretext loss", [(source, source.pretext) for source in stage.sources]),
        ("distillation loss", [(source, source.distill) for source in stage.sources]),
    ):
        shown = [(source, series) for source, series in values if any(value is not None for value in series)]
        if shown:
            panels.append((title, shown))
    if not panels:
        return None
    figure = Figure(figsize=(4.4 * len(panels), 2.7), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, series_of) in zip(grid, panels, strict=True):
        for source, series in series_of:
            known = [(step, value) for step, value in zip(source.steps, series, strict=True) if value is not None]
            label = source.modality + (" (buffer)" if source.is_replay else "")
            marker = "o" if len(known) < 3 else None
            axes.plot(
                *zip(*known, strict=True), color=palette[source.modality], label=label, lw=1.6, marker=marker, ms=4
            )
        axes.set_title(title, fontsize=9, loc="left", color=_INK)
        axes.set_xlabel("step")
        if title.startswith("distillation"):
            axes.set_ylim(bottom=0)  # it starts near 0: without a zero line its small rise looks like a disaster
        axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
    return _png(figure)


def throughput(stages: Sequence[StageRecord]) -> bytes | None:
    """Samples a second of each stage, with the share of time spent waiting for data; None without measurements."""
    measured = [stage for stage in stages if stage.samples_per_s is not None]
    if not measured:
        return None
    figure = Figure(figsize=(8.8, 0.5 + 0.42 * len(measured)), layout="constrained")
    axes, waits = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = [stage.name for stage in measured]
    rates = [stage.samples_per_s or 0.0 for stage in measured]
    shares = [100 * (stage.data_wait_fraction or 0.0) for stage in measured]
    for panel, values, colour, label, form in (
        (axes, rates, PALETTE[0], "samples/s (median)", "{:.3g}"),
        (waits, shares, PALETTE[1], "time waiting for data (%)", "{:.1f}"),
    ):
        bars = panel.barh(names, values, color=colour, height=0.6)
        panel.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=8)
        panel.set_xlabel(label)
        panel.margins(x=0.18)
        _tidy(panel)
        panel.grid(axis="y", visible=False)
    axes.invert_yaxis()
    waits.set_xlim(0, max(10.0, 1.2 * max(shares)))
    return _png(figure)


def _tidy(axes: Axes) -> None:
    axes.grid(color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No metadata: the version of matplotlib in it would make reports of one run differ.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
