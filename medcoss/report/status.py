"""Where a run stands, in figures and in a few lines."""

from __future__ import annotations

from typing import Any

from medcoss.continual.run import Run
from medcoss.contracts import UsageError
from medcoss.report.record import StageRecord, read_stages


def status(run: Run) -> dict[str, Any]:
    """State of a run and of each stage, JSON-ready. Raises `UsageError` if the folder holds no run."""
    stages = read_stages(run)
    return {
        "run": str(run.directory),
        "paradigm": run.config.continual.paradigm,
        "in_use": _in_use(run),
        "stages": [_stage(stage) for stage in stages],
        "next": next((stage.name for stage in stages if stage.state != "done"), None),
    }


def _stage(stage: StageRecord) -> dict[str, Any]:
    latest = {
        source.modality + (" (buffer)" if source.is_replay else ""): pretext if pretext is not None else distill
        for source in stage.sources
        for pretext, distill in [(source.pretext[-1], source.distill[-1])]
    }
    return {
        "stage": stage.name,
        "state": stage.state,
        "modality": stage.modality,
        "samples": stage.samples,
        "steps": stage.done.get("steps", stage.last_step),
        "seconds": stage.done.get("seconds"),
        "loss": latest,
        "samples_per_s": stage.samples_per_s,
        "buffer": stage.buffer.splits["train"].samples if stage.buffer else None,
    }


def _in_use(run: Run) -> bool:
    """Whether a trainer holds the run's lock."""
    if not (run.directory / ".lock").exists():
        return False
    try:
        with run.lock():
            return False
    except UsageError:
        return True


def status_text(state: dict[str, Any]) -> str:
    """The status as lines for a terminal."""
    lines = [f"{state['run']}: {state['paradigm']}" + (", in use by a trainer" if state["in_use"] else "")]
    for stage in state["stages"]:
        parts = [f"{stage['state']:8s}"]
        parts.append("samples missing" if stage["samples"] is None else f"{stage['samples']} samples")
        if stage["steps"]:
            parts.append(f"step {stage['steps']}")
        parts += [f"{name} {value:.4f}" for name, value in stage["loss"].items() if value is not None]
        if stage["buffer"] is not None:
            parts.append(f"buffer {stage['buffer']}")
        lines.append(f"  {stage['stage']:16s} {', '.join(parts)}")
    if state["next"]:
        lines.append(f"next: deepspeed launch/pretrain.py --stage {state['next']} --run {state['run']}")
    return "\n".join(lines) + "\n"
