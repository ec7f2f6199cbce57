"""Choose the rehearsal buffer of a finished stage, as the trainer does at a stage's end.

A buffer that is there already is left as it is; delete its folder to choose anew. Examples:

  deepspeed launch/build_buffer.py --stage ct
  python launch/build_buffer.py --stage ct --run runs/mine --ratio 0.1 --policy random
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from medcoss import command
from medcoss.continual.buffer import build_buffer
from medcoss.continual.run import Run
from medcoss.contracts import UsageError
from medcoss.shards.reader import ShardSet
from medcoss.train import engine
from medcoss.train.process import die_with_launcher
from medcoss.train.world import find_world


def main(arguments: argparse.Namespace) -> int:
    """Build the buffer on all ranks; rank 0 says what came of it."""
    world, run, name = find_world(os.environ), Run(arguments.run), arguments.stage
    stages = {stage.name: stage for stage in run.config.stages}
    if name not in stages:
        raise UsageError(f"{run.directory} has no stage {name!r}: its stages are {', '.join(stages)}")
    if run.done(name) is None:
        raise UsageError(f"stage {name} of {run.directory} is not finished: train it with launch/pretrain.py")
    settings, out = run.config.continual, run.buffer_directory(name)
    device = engine.choose_device(world)
    with run.lock() if world.rank == 0 else nullcontext(), engine.joined(world, device, os.environ):
        manifest = build_buffer(
            ShardSet.open(stages[name].path()),
            run.model_path(name),
            out,
            ratio=settings.ratio if arguments.ratio is None else arguments.ratio,
            centers=settings.centers if arguments.centers is None else arguments.centers,
            policy=arguments.policy or settings.policy,
            seed=run.config.seed,
            data=run.config.data,
            rank=world.rank,
            world_size=world.size,
            barrier=torch.distributed.barrier,
        )
    if world.rank == 0:
        kept, read, filled = manifest.inputs["written"], manifest.inputs["read"], (manifest.parent or {})["filled"]
        print(f"{out}: {kept} of {read} samples, {filled} of them filled in for clusters with too few")
    return 0


if __name__ == "__main__":
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", required=True, metavar="NAME", help="finished stage")
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="the run's folder (runs/default)")
    parser.add_argument("--ratio", type=float, help="part of the set to keep (the run's)")
    parser.add_argument("--centers", type=float, help="k-means clusters as a part of the set (the run's)")
    parser.add_argument("--policy", choices=["kmeans", "random"], help="how to choose (the run's)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers append it
    command.add_debug(parser)
    options = parser.parse_args()
    die_with_launcher(os.environ)
    sys.exit(command.run(main, options, debug=options.debug))
