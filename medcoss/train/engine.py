"""The only module that imports DeepSpeed: process group, ZeRO, state as full tensors.

State is moved in and out as full tensors by parameter name, so a checkpoint depends neither on the number of ranks nor
on the ZeRO stage, and nothing is pickled.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from medcoss.config import TrainConfig
from medcoss.contracts import MedcossError
from medcoss.train.adamw import MOMENTS, GroupedAdamW
from medcoss.train.world import World, rendezvous

Groups = Mapping[str, Sequence[tuple[str, nn.Parameter]]]
"""Named parameters by group; a step updates some groups and leaves the others exactly as they are."""

_MEETING = timedelta(minutes=10)
_FAILURE = "medcoss/failure"
_GONE = "another rank is gone (killed, or out of memory): run the same command again to go on"
_LOST_PEER = ("onnection", "imed out", "NCCL")
"""Words in what gloo and NCCL raise when another rank is gone."""


def choose_device(world: World) -> torch.device:
    """This rank's GPU where there is one, else the CPU (with the machine's cores shared by its ranks)."""
    if torch.cuda.is_available():
        device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(world.threads(os.environ))
    return torch.device("cpu")


@contextmanager
def joined(world: World, device: torch.device, environment: Mapping[str, str]) -> Iterator[None]:
    """Inside, this rank is in the process group (nccl and gloo on GPUs, gloo on CPUs).

    A rank that fails with a `MedcossError` or an `OSError` leaves its reason for the others, which raise it too: so
    rank 0 can print it. Raises `MedcossError` if ranks cannot meet or one of them is gone without a word.
    """
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    # No port is needed to meet oneself, so runs of one process cannot collide on a machine.
    store: Store = HashStore() if world.size == 1 else _meet(world, environment)
    torch.distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    try:
        yield
    except (MedcossError, OSError) as error:
        store.set(_FAILURE, str(error))
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _LOST_PEER):
            raise
        reason = store.get(_FAILURE).decode() if store.check([_FAILURE]) else _GONE
        raise MedcossError(reason) from error
    finally:
        torch.distributed.destroy_process_group()


def _meet(world: World, environment: Mapping[str, str]) -> Store:
    address, port = rendezvous(environment)
    url = f"tcp://{address}:{port}"
    try:
        store: Store = next(torch_rendezvous(url, world.rank, world.size, timeout=_MEETING))[0]
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        mend = "give another --master_port if it is in use"
        raise MedcossError(f"ranks cannot meet at {address}:{port} ({reason}): {mend}") from error
    return store


class Engine:
    """A module under DeepSpeed.

    `groups` must hold every trainable parameter of `module` once. Weight decay acts on matrices only: none on biases,
    norms and other vectors.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Groups,
        config: TrainConfig,
        world: World,
        device: torch.device,
        *,
        micro_batch: int,
        accumulation: int,
    ) -> None:
        self._names: dict[str, nn.Parameter] = {name: p for group in groups.values() for name, p in group}
        self._config, self._world = config, world
        optimizer_groups: list[dict[str, Any]] = []
        for group, members in groups.items():
            for decays in (True, False):
                chosen = [(name, p) for name, p in members if _decays(p) is decays]
                if chosen:
                    decay = config.weight_decay if decays else 0.0
                    entry = {"params": [p for _, p in chosen], "weight_decay": decay, "active": False, "group": group}
                    optimizer_groups.append(entry | {"names": [name for name, _ in chosen]})
        self._group_of = {
            name: (entry["group"], entry["weight_decay"]) for entry in optimizer_groups for name in entry["names"]
        }
        module.to(device)
        optimizer = GroupedAdamW(optimizer_groups, lr=0.0, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)
        settings = _settings(config, world, micro_batch, accumulation, self._count())
        self._engine = _initialize(module, optimizer, settings, world)
        self._optimizer = optimizer
        if config.zero_stage == 3:
            self._gather_tables(module, groups)
        optimizer.ensure_state([flat for flat, _ in self._flat()])
        link = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            # ZeRO 1 and 2 tie moments to parameters after their first step; a resumed run needs the tie before it.
            link()

    @property
    def module(self) -> nn.Module:
        """The module under training."""
        module: nn.Module = self._engine.module
        return module

    def set(self, lr: float, active: set[str]) -> None:
        """Learning rate and groups of the coming step."""
        for group in self._optimizer.param_groups:
            group["active"] = group["group"] in active
            group["lr"] = lr if group["active"] else 0.0

    def __call__(self, *inputs: Any) -> Tensor:
        """The module's loss on one micro batch (a scalar)."""
        loss: Tensor = self._engine(*inputs)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro batch; after the last one of a step, update the active groups."""
        self._engine.backward(loss)
        self._engine.step()

    def grad_norm(self) -> float | None:
        """Norm of the last step's whole gradient; None where DeepSpeed keeps none (ZeRO 0 without clipping)."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def state(self) -> dict[str, Tensor]:
        """Full weights, moments and step counts by `weight/NAME`, `exp_avg/NAME`, … (CPU copies).

        A collective: every rank must call it. Ranks other than 0 get an empty dict, so they need no memory for it.
        """
        tensors: dict[str, Tensor] = {}
        steps = {key: self._optimizer.state[flat]["step"] for flat, key in self._flat()}
        for name, parameter in self._names.items():
            values = {"weight": self._weight(parameter)}
            values |= {key: self._moment(parameter, key) for key in MOMENTS}
            if self._world.rank == 0:
                tensors |= {f"{kind}/{name}": value.detach().cpu().clone() for kind, value in values.items()}
                tensors[f"step/{name}"] = steps[self._group_of[name]].detach().cpu().clone()
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, on every rank. Raises `MedcossError` if names or shapes differ."""
        steps: dict[tuple[str, float], Tensor] = {}
        for name, parameter in self._names.items():
            values = {kind: tensors.get(f"{kind}/{name}") for kind in ("weight", "step", *MOMENTS)}
            shape = getattr(parameter, "ds_shape", parameter.shape)
            if any(v is None or (kind != "step" and v.shape != shape) for kind, v in values.items()):
                raise MedcossError(f"checkpoint does not fit the model at {name}: delete it, or restore the settings")
            found = {kind: value for kind, value in values.items() if value is not None}
            self._put(parameter, found)
            steps[self._group_of[name]] = found["step"]
        for flat, key in self._flat():
            self._optimizer.state[flat]["step"].copy_(steps[key])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every rank's `module` holds its full weights (ZeRO 3 scatters them otherwise)."""
        if self._config.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._names.values())):
            yield

    def _gather_tables(self, module: nn.Module, groups: Groups) -> None:
        """Have ZeRO 3 gather what is used outside its own module's `forward` for the whole of `module`'s.

        DeepSpeed gathers a parameter when its module is called. Positions, [CLS], patch projections are used without
        that; only the encoder's blocks, which are most of the weights, are left to be gathered one by one.
        """
        import deepspeed

        for group, members in groups.items():
            for _, parameter in members if group != "shared" else ():
                deepspeed.zero.register_external_parameter(module, parameter)

    def _count(self) -> int:
        return sum(parameter.numel() for parameter in self._names.values())

    def _flat(self) -> Iterator[tuple[Tensor, tuple[str, float]]]:
        """The tensors AdamW steps (ZeRO's flat partitions, or the parameters themselves) and their group's key."""
        groups = self._optimizer.param_groups
        keys = [(group["group"], group["weight_decay"]) for group in groups]
        if self._config.zero_stage == 3:
            zero = self._engine.optimizer
            for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
                yield flat, keys[zero.sub_group_to_group_id[index]]
            return
        for group, key in zip(groups, keys, strict=True):
            for parameter in group["params"]:
                yield parameter, key

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor | None = safe_get_full_fp32_param(parameter) if self._config.zero_stage else None
        return parameter.data if value is None else value

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._config.zero_stage == 0:
            moment: Tensor = self._optimizer.state[parameter][key]
        else:
            moment = safe_get_full_optimizer_state(parameter, key)
        return moment

    def _put(self, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        with torch.no_grad():
            if self._config.zero_stage == 3:
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(values["weight"])
            else:
                parameter.data.copy_(values["weight"])
            if self._config.zero_stage == 0:
                for key in MOMENTS:
                    self._optimizer.state[parameter][key].copy_(values[key])
                return
            safe_set_full_fp32_param(parameter, values["weight"].to(parameter.device))
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[key].to(parameter.device), key)


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.squeeze().ndim > 1


def _settings(
    config: TrainConfig, world: World, micro_batch: int, accumulation: int, parameters: int
) -> dict[str, Any]:
    bucket = min(parameters + parameters % 2, 50_000_000)  # ZeRO 1 and 2 want an even number
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": bucket}
    if config.zero_stage in (1, 2):
        zero["allgather_bucket_size"] = bucket
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 10_000  # norms and biases are not worth scattering
    return {
        "train_batch_size": micro_batch * accumulation * world.size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], world: World) -> Any:
    """`deepspeed.initialize` without its banners and without its 27 s compilation of a shared-memory operator."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["LOCAL_RANK"] = str(world.local_rank)
    # DeepSpeed calls torch's older names of two collectives in every step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)
        compatible = getattr(deepspeed.ops, "__compatible_ops__", {})
        if "deepspeed_shm_comm" in compatible:
            compatible["deepspeed_shm_comm"] = False
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine
