"""The whole path, raw files to report, by running the other commands as anyone could: python launch/demo.py"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from medcoss import config as configuration
from medcoss.command import Parser, add_debug, run
from medcoss.contracts import MedcossError, UsageError

HERE = Path(__file__).resolve().parent


def main(arguments: argparse.Namespace) -> int:
    """Run every step in order; each resumes or says that it is done, so a stopped demo goes on where it was."""
    name, raw = ("real", Path(arguments.data)) if arguments.data else ("demo", Path("raw/demo"))
    file = HERE / "configs" / ("real_demo.toml" if arguments.data else "demo.toml")
    directory = Path("runs", name)
    config = configuration.load(file)
    missing = [raw / stage.name for stage in config.stages if arguments.data and not (raw / stage.name).is_dir()]
    if missing:
        raise UsageError(f"no folder {missing[0]}: lay your files out as DIR/{{report,xray,ct,mri,pathology}}")
    if not Path("/proc/driver/nvidia/version").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unsaid, DeepSpeed finds the same but warns about it
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")  # if stopped
    ranks = ["--num_accelerators", "2"] if os.environ.get("DS_ACCELERATOR") == "cpu" else []
    steps = [] if arguments.data else [["preprocess", "phantoms", "--out", str(raw), "--seed", "0"]]
    for stage in config.stages:
        # {raw} and {configs} let one configuration serve any place.
        options = [o.format(raw=raw, configs=HERE / "configs") for o in config.preprocess.get(stage.name, ())]
        steps.append(["preprocess", stage.name, "--in", str(raw / stage.name), "--out", str(stage.path()), *options])
    run_options = ["--run", str(directory), "--config", str(file)]
    for stage in config.stages:
        steps.append(["deepspeed", "-q", *ranks, str(HERE / "pretrain.py"), *run_options, "--stage", stage.name])
    steps.append(["medcoss", "report", str(directory)])
    started = time.monotonic()
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}, {time.monotonic() - started:.0f} s] {shlex.join(step)}", flush=True)
        status = execute(step)
        if status == 3 and step[0] == "preprocess":
            print("some inputs failed: outcomes.parquet and qc/index.html of the set say which and why")
        elif status:
            raise MedcossError(f"step {number} ended with status {status}: mend it, then run the same again")
        elif step[0] == "deepspeed" and not (directory / "stages" / step[-1] / "done.json").exists():
            raise MedcossError(f"step {number} was stopped: run the same again to go on")
    print(f"\nDone in {time.monotonic() - started:.0f} s: open {directory / 'report.html'}")
    return 0


def execute(command: list[str]) -> int:
    """Run one step in a session of its own; it is stopped with everything it started if this process stops or dies."""
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = Parser(description=__doc__)
    parser.add_argument("--data", help="folder of real raw files, a subfolder a modality (default: made ones)")
    add_debug(parser)
    sys.exit(run(main, parser.parse_args(), debug="--debug" in sys.argv))
