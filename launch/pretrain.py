"""Train one stage of a run: pretext task on its set, distillation on the buffers of the stages before it.

The run's folder provides everything else: the previous model (also the teacher), the buffers, the settings (run.toml).
A stopped or killed stage goes on where it was by the same command. Examples:

  deepspeed --num_accelerators 2 launch/pretrain.py --stage ct --run runs/mine --config mine.toml --set train.epochs=20
  torchrun --nproc-per-node 8 -- launch/pretrain.py --stage ct     srun python launch/pretrain.py --stage ct
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from medcoss import command, config
from medcoss.continual.run import Run, open_run
from medcoss.continual.stage import resolve_stage
from medcoss.train.process import die_with_launcher
from medcoss.train.world import find_world


def main(arguments: argparse.Namespace) -> int:
    """Resolve the stage, train it, choose its buffer, evaluate it, write the report."""
    world = find_world(os.environ)
    writes = world.rank == 0 and not arguments.dry_run
    paradigm = [f"continual.paradigm={arguments.paradigm}"] if arguments.paradigm else []
    settings = config.read_settings(arguments.config, [*arguments.set, *paradigm])
    with Run(arguments.run).lock() if writes else nullcontext():
        run = open_run(arguments.run, settings, write=False)
        stage = resolve_stage(run, arguments.stage)
        open_run(arguments.run, settings, write=writes)  # a refused command fixes no settings
        from medcoss.train.pretrain import describe, pretrain  # needs torch; what is refused until here does not

        command.say(describe(run, stage, world))
        if arguments.dry_run:
            return 0
        if run.done(stage.name) is None:
            options = {"resume": arguments.resume == "auto", "with_buffer": not arguments.no_buffer}
            if not pretrain(run, stage, world, say=command.say, **options):
                return 0
        if world.rank == 0 and run.config.evaluate.after_stage and not arguments.no_evaluate:
            from medcoss.evaluate.retention import is_evaluated, update_retention
            from medcoss.report.run_report import write_report

            if not is_evaluated(run, stage.name):
                command.say(f"stage {stage.name}: evaluating every modality so far")
                update_retention(run, stage.name)
            write_report(run)
        command.say(f"stage {stage.name} is done: {run.stage_directory(stage.name)}")
    return 0


if __name__ == "__main__":
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", required=True, metavar="NAME", help="stage to train (joint: the one of a joint run)")
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="the run's folder (runs/default)")
    parser.add_argument("--config", type=Path, help="TOML of a new run; later it may only repeat or add stages")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="one setting over --config's")
    parser.add_argument("--paradigm", choices=["medcoss", "sequential", "replay", "joint"], help="of a new run")
    parser.add_argument(
        "--resume", choices=["auto", "never"], default="auto", help="never: drop checkpoints, begin anew"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be done, write nothing"
    )
    parser.add_argument(
        "--no-buffer", action="store_true", help="choose no buffer: launch/build_buffer.py does it later"
    )
    parser.add_argument("--no-evaluate", action="store_true", help="neither probe nor report after the stage")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers append it
    command.add_debug(parser)
    options = parser.parse_args()
    die_with_launcher(os.environ)
    sys.exit(command.run(main, options, debug=options.debug))
