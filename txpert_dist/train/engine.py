"""The one door to DeepSpeed: our configuration -> an engine that steps, and its state as plain tensors.

Enters: a model (already on its device, weights already loaded), the configuration and the run's length.
Leaves: an ``Engine``; its optimiser state as named tensors that do not depend on the number of ranks nor on
the ZeRO stage. Invariant: parameters are fp32 on every rank; bf16 is autocast (never DeepSpeed's
``bf16.enabled``, whose stage 0 takes a hidden optimiser step at start and whose buffers lose precision).
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError
from txpert_dist.train.collective import rank, world_size
from txpert_dist.train.schedule import schedule

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square: one tensor of the parameter's shape each."""

_NEVER = 10**9
"""Steps between two of DeepSpeed's own progress lines: we log ourselves."""


@dataclass(frozen=True)
class Engine:
    """DeepSpeed's engine with the optimiser inside it."""

    deepspeed: Any
    adamw: torch.optim.AdamW
    stage: int
    """ZeRO stage that DeepSpeed runs: 0 to 3."""
    device_type: str
    bf16: bool
    """Whether DeepSpeed runs the forward under autocast."""

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        module: nn.Module = self.deepspeed.module
        return module

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.adamw.param_groups[0]["lr"])


class Step(NamedTuple):
    """What became of one optimiser step."""

    taken: bool
    gradient_norm: float
    """Global norm of the gradient, averaged over ranks, before clipping."""


def deepspeed_settings(config: Config, *, micro_batch: int) -> dict[str, Any]:
    """The DeepSpeed configuration of one run; ``micro_batch`` cells a rank and step (informative)."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,  # one backward a step, whatever train.accumulation (parts.py)
        "gradient_clipping": config.optimiser.gradient_clipping,
        "zero_optimization": _zero_settings(config),
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps on the CPU as well, and is not compiled
    }
    if config.train.precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return settings


def build_engine(
    model: nn.Module, config: Config, *, device: torch.device, num_steps: int, start_step: int = 0
) -> Engine:
    """Wrap ``model`` for a run of ``num_steps`` steps, of which ``start_step`` are done.

    The process group must exist. A run that resumes must put the weights into ``model`` before this call
    (ZeRO copies them) and call ``restore_optimiser_state`` after it.
    """
    _quieten(device)
    # of the whole process, which trains one run: gradients are taken where no context reaches
    torch.backends.cuda.matmul.allow_tf32 = config.train.precision == "tf32"
    optimiser = config.optimiser
    adamw = torch.optim.AdamW(
        _trained(model).values(), lr=optimiser.learning_rate, weight_decay=optimiser.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        adamw, schedule(optimiser, num_steps=num_steps, start_step=start_step)
    )
    deepspeed.init_distributed(verbose=False, auto_mpi_discovery=False)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(_trained(model).values()),
        optimizer=adamw,
        lr_scheduler=scheduler,
        config=deepspeed_settings(config, micro_batch=config.train.minibatch_size // world_size()),
    )
    stage = config.cluster.zero_stage
    return Engine(engine, adamw, stage, device.type, bf16=config.train.precision == "bf16")


def weights(engine: Engine) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, whole.

    Collective: every rank must call it.
    """
    if engine.stage < 3:
        return dict(engine.module.state_dict())
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        # their memory is DeepSpeed's again when this ends
        return {name: value.detach().clone() for name, value in engine.module.state_dict().items()}


def precision(engine: Engine, *, casts_kept: bool = True) -> torch.autocast:
    """A context for what the model computes outside of DeepSpeed's forward: as it is inside.

    ``casts_kept`` casts a parameter once within the context, however often it is used.
    """
    return torch.autocast(engine.device_type, torch.bfloat16, enabled=engine.bf16, cache_enabled=casts_kept)


def backward(engine: Engine, loss: Tensor) -> None:
    """Gradients of ``loss``, averaged over ranks."""
    engine.deepspeed.backward(loss)


def step(engine: Engine) -> Step:
    """One optimiser step; refused, with the parameters untouched, when a gradient is not finite."""
    if engine.stage == 0:
        norm = float(torch.nn.utils.get_total_norm(_gradients(engine.module)))
        if not math.isfinite(norm):
            return Step(False, norm)
        engine.deepspeed.step()
        return Step(True, norm)
    # Every stage above 0 computes the global norm itself and refuses a step whose norm is not finite.
    engine.deepspeed.step()
    return Step(bool(engine.deepspeed.was_step_applied()), float(engine.deepspeed.get_global_grad_norm()))


def optimiser_state(engine: Engine) -> dict[str, Tensor]:
    """AdamW's moments of every parameter, whole, on the CPU: ``exp_avg.NAME`` and ``exp_avg_sq.NAME``.

    Collective: every rank must call it. Empty before the first step.
    """
    if not _has_stepped(engine):
        return {}
    state = {}
    for name, parameter in _trained(engine.module).items():
        for moment in MOMENTS:
            state[f"{moment}.{name}"] = _moment(engine, parameter, moment).cpu()
    return state


def restore_optimiser_state(engine: Engine, state: Mapping[str, Tensor], *, steps_taken: int) -> None:
    """Put ``state`` into a fresh engine of any number of ranks and any stage.

    Raises ``CheckpointError`` naming the first parameter whose state is missing or of another shape.
    """
    if not state:
        return
    whole = {
        name: [_matching(state, name, moment, parameter) for moment in MOMENTS]
        for name, parameter in _trained(engine.module).items()
    }
    for parameter in _stepped(engine):
        engine.adamw.state[parameter] = _zero_state(parameter, steps_taken)
    for name, parameter in _trained(engine.module).items():
        for moment, value in zip(MOMENTS, whole[name], strict=True):
            _set_moment(engine, parameter, moment, value.to(parameter.device))


def _zero_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": config.cluster.zero_stage}
    if config.cluster.offload_optimizer:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": config.cluster.use_gpu}
    return settings


def _quieten(device: torch.device) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        # The shared-memory op serves inference only; building it costs 80 s and hangs on a stale lock.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _stepped(engine: Engine) -> list[Tensor]:
    """What AdamW steps: the parameters at stage 0, this rank's flat shares of them above."""
    if engine.stage == 3:  # DeepSpeed hands them to AdamW for the time of a step only
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in engine.adamw.param_groups for parameter in group["params"]]


def _shape(parameter: Tensor) -> torch.Size:
    """Of the whole parameter, of which stage 3 leaves nothing here."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def _has_stepped(engine: Engine) -> bool:
    return len(engine.adamw.state) > 0


def _moment(engine: Engine, parameter: nn.Parameter, moment: str) -> Tensor:
    if engine.stage > 0:
        whole: Tensor = safe_get_full_optimizer_state(parameter, moment)
        return whole
    kept = engine.adamw.state.get(parameter, {})
    value: Tensor = kept.get(moment, torch.zeros_like(parameter))
    return value.detach()


def _set_moment(engine: Engine, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    if engine.stage == 0:
        engine.adamw.state[parameter][moment].copy_(value)
        return
    if engine.stage == 3:
        safe_set_local_optimizer_state(parameter, _share(parameter, value), moment)
        return
    fragment = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's; None on ranks without a share
    if fragment is not None and fragment.optim_fragment is None:
        # DeepSpeed links state to parameters after the first step only; a fresh engine has taken none.
        partition = engine.adamw.param_groups[fragment.param_group_index]["params"][0]
        fragment.set_optim_state_fragment(partition, engine.adamw.state[partition])
    safe_set_full_optimizer_state(parameter, value, moment)


def _share(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of ``value``, of which every rank has equally much; the last one's is filled up."""
    size: int = parameter.partition_numel()  # type: ignore[attr-defined]  # DeepSpeed's
    whole = torch.nn.functional.pad(value.flatten(), (0, size * world_size() - value.numel()))
    return whole[size * rank() : size * (rank() + 1)]


def _zero_state(parameter: Tensor, steps_taken: int) -> dict[str, Tensor]:
    # As torch's AdamW keeps it with fused=True: the count is a float32 on the parameter's device.
    count = torch.tensor(float(steps_taken), dtype=torch.float32, device=parameter.device)
    return {"step": count, **{moment: torch.zeros_like(parameter.detach()) for moment in MOMENTS}}


def _matching(state: Mapping[str, Tensor], name: str, moment: str, parameter: Tensor) -> Tensor:
    value = state.get(f"{moment}.{name}")
    if value is None or value.shape != _shape(parameter):
        found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
        raise CheckpointError(
            f"optimiser state of parameter {name} {found}, the model needs {tuple(_shape(parameter))}; "
            "resume with the configuration the checkpoint was made with"
        )
    return value
