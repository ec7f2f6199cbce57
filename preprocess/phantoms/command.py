"""The subcommand `preprocess phantoms`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from medcoss.contracts import UsageError
from preprocess.phantoms.write import generate

SUMMARY = "make raw sample data of all modalities, in clinical formats"
EXAMPLE = "preprocess phantoms --out raw --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `preprocess phantoms`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder a modality")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same bytes (default %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="times the usual number of subjects (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Generate as the options say; returns the exit status."""
    if not 0 < arguments.scale <= 100:
        raise UsageError(f"--scale is {arguments.scale:g}: expected more than 0 and at most 100")
    if arguments.workers < 1:
        raise UsageError(f"--workers is {arguments.workers}: expected at least 1")
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"phantoms: {text} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)

    counts = generate(arguments.out, arguments.seed, arguments.scale, arguments.workers, say)
    if arguments.json:
        print(json.dumps(counts))
    return 0
