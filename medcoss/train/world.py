"""Which rank this process is, under `deepspeed`, `torchrun`, `srun` or plain `python`. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from medcoss.contracts import UsageError


@dataclass(frozen=True)
class World:
    """This process among all ranks: global `rank` of `size`, `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def threads(self, environment: Mapping[str, str]) -> int:
        """Compute threads for this rank on a CPU: OMP_NUM_THREADS, else its share of the usable cores, at least 1.

        torchrun sets OMP_NUM_THREADS to 1 by itself, which is nobody's wish: under it the cores are shared.
        """
        wish = environment.get("OMP_NUM_THREADS", "")
        if wish.isdigit() and int(wish) > 0 and "TORCHELASTIC_RUN_ID" not in environment:
            return int(wish)
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def share(self, global_batch: int) -> int:
        """Samples of a global batch on this rank. Raises `UsageError` if the ranks cannot share it evenly."""
        if global_batch % self.size:
            raise UsageError(
                f"train.global_batch {global_batch} cannot be shared by {self.size} ranks: "
                "start a number of processes that divides it"
            )
        return global_batch // self.size


def find_world(environment: Mapping[str, str]) -> World:
    """Read the launcher's variables; one process without a launcher is a world of one.

    Raises `UsageError` if they are not numbers or contradict each other.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            local = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", environment["WORLD_SIZE"]))
            local_rank = environment.get("LOCAL_RANK", "0")
            world = World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(local_rank), int(local))
        elif "SLURM_STEP_NUM_TASKS" in environment:
            local = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
            size, rank = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_PROCID"])
            world = World(rank, size, int(environment["SLURM_LOCALID"]), int(local))
        else:
            return World()
    except (KeyError, ValueError) as error:
        raise UsageError(f"the launcher's rank variables are unreadable ({error}): start with `deepspeed`") from error
    if not 0 <= world.rank < world.size or world.local_size < 1:
        raise UsageError(f"the launcher says rank {world.rank} of {world.size}: start with `deepspeed`")
    return world


def rendezvous(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port where ranks meet: MASTER_ADDR and MASTER_PORT, else Slurm's first node and a port by job."""
    address = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    job = environment.get("SLURM_JOB_ID", "0")
    port = environment.get("MASTER_PORT") or str(20000 + (int(job) if job.isdigit() else 0) % 20000)
    try:
        return address, int(port)
    except ValueError as error:
        raise UsageError(f"MASTER_PORT is {port!r}: expected a number") from error


def _first_host(nodes: str) -> str:
    """First host of a Slurm node list: `gpu[03-07,9],cpu1` gives gpu03."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if found is None:
        raise UsageError(f"Slurm's node list {nodes!r} is unreadable: set MASTER_ADDR")
    return found[1] + (found[2] or "") + (found[3] or "")
