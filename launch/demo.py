"""The whole path on one command: raw files of five modalities to a rehearsed model and its report.

It only runs the other commands, as anyone could type them, and says which. Example: python launch/demo.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from medcoss import config as configuration
from medcoss.command import add_debug, run
from medcoss.contracts import MedcossError, UsageError

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent


def main(arguments: argparse.Namespace) -> int:
    """Run every step in order; each resumes or says that it is done, so a stopped demo goes on where it was."""
    name = "real" if arguments.data else "demo"
    config_file = arguments.config or HERE / "configs" / ("real_demo.toml" if arguments.data else "demo.toml")
    config = configuration.load(config_file)
    run_directory = Path("runs", name)
    raw = Path(arguments.data or "raw/demo")
    if not raw.is_dir() and arguments.data:
        raise UsageError(f"no folder {raw}: give DATA a folder laid out as DIR/{{report,xray,ct,mri,pathology}}")
    steps: list[tuple[str, list[str]]] = []
    if not arguments.data:
        steps.append(("make raw sample data", ["preprocess", "phantoms", "--out", str(raw), "--seed", "0"]))
    for stage in config.stages:
        # Options name files of the data folder as {raw}/..., so that the same configuration serves any place.
        options = [option.replace("{raw}", str(raw)) for option in config.preprocess.get(stage.name, ())]
        command = ["preprocess", stage.name, "--in", str(raw / stage.name), "--out", str(stage.path()), *options]
        steps.append((f"convert {stage.name} to shards", command))
    for stage in config.stages:
        command = ["deepspeed", *launcher_options(arguments.processes), str(HERE / "pretrain.py")]
        command += ["--stage", stage.name, "--run", str(run_directory), "--config", str(config_file)]
        steps.append((f"train stage {stage.name}, pick its buffer, evaluate", command))
    steps.append(("write the report", ["medcoss", "report", str(run_directory)]))
    started = time.monotonic()
    for number, (what, command) in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {time.monotonic() - started:4.0f} s  {what}\n  $ {shlex.join(command)}", flush=True)
        status = execute(command)
        if status == 3 and command[0] == "preprocess":
            print("  some inputs failed; they are listed with reasons in outcomes.parquet and qc/index.html")
        elif status:
            raise MedcossError(f"step {number} ({what}) ended with status {status}: mend it and run the same again")
    print(f"\nDone in {time.monotonic() - started:.0f} s: open {run_directory / 'report.html'}")
    return 0


def launcher_options(processes: int) -> list[str]:
    """DeepSpeed's options for this machine: all its GPUs, or `processes` ranks on the CPU."""
    if not Path("/proc/driver/nvidia/version").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unsaid, DeepSpeed finds the same but warns about it
    return ["-q", "--num_accelerators", str(processes)] if os.environ.get("DS_ACCELERATOR") == "cpu" else ["-q"]


def execute(command: list[str]) -> int:
    """Run one step in its own process group, so that stopping the demo stops the step and everything it started."""
    process = subprocess.Popen([str(BIN / command[0]), *command[1:]], start_new_session=True)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of real raw files, a subfolder a modality (default: made ones)")
    parser.add_argument("--config", type=Path, help="run configuration (default: the one of the demo)")
    parser.add_argument("--processes", type=int, default=2, help="ranks on a machine without a GPU (default 2)")
    add_debug(parser)
    sys.exit(run(main, parser.parse_args(), debug=False))
