"""Whole steps measured for real: a layer, a training step with its memory, prefill and decoding."""

import json
from dataclasses import dataclass
from typing import Any

from profiles.measure.backend import Backend
from profiles.measure.cases import Case
from profiles.measure.decoder import Cache, Decoder
from profiles.measure.models import ModelShape
from profiles.measure.optimizers import MasterAdamW
from profiles.measure.timing import Timing, Workload, summary, time_workload

WARM_UP_STEPS = 3  # the first allocates, the second settles the allocator, the third is as all others
STEPS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A measured training step.

    Attributes:
        timing: Seconds per step, host included.
        allocated_bytes: Peak of live tensors; NaN where PyTorch does not count them.
        reserved_bytes: Peak of what the allocator held.
        first_loss, last_loss: Mean loss of the first and the last step: it must fall.
    """

    timing: Timing
    allocated_bytes: float
    reserved_bytes: float
    first_loss: float
    last_loss: float


def _settings(case: Case) -> tuple[ModelShape, dict[str, Any]]:
    found = json.loads(case.config)
    names = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "gated")
    return ModelShape(name=found["model"], **{name: found[name] for name in names}), found


def measure_train_step(case: Case, backend: Backend) -> StepResult:
    """Train for a few steps on the same random tokens, from fixed seeds, and time the later ones.

    Raises:
        RuntimeError: As PyTorch raises it, for want of memory.
    """
    shape, settings = _settings(case)
    backend.release()
    backend.seed()
    peaks = backend.watch_memory()
    model = Decoder(backend=backend, shape=shape, max_sequence=settings["seq"])
    fused = settings["optimizer"] == "adamw_fused_master"
    optimizer = MasterAdamW(backend.torch, model.weights, capturable=False, fused=fused)
    sequences, passes = settings["micro_batch"], case["batch"]
    ids = backend.integers(passes * sequences * (settings["seq"] + 1), shape.vocab)
    batches = ids.view(passes, sequences, settings["seq"] + 1)
    samples, losses = [], []
    for step in range(WARM_UP_STEPS + STEPS):
        backend.synchronize()
        stop = backend.start_host_timer()
        total = 0.0
        for batch in batches:
            loss = model.loss(batch, recompute=settings["recompute"] == "full") / passes
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        backend.synchronize()
        if step >= WARM_UP_STEPS:
            samples.append(stop())
        losses.append(float(total))
    allocated, reserved = peaks()
    return StepResult(
        timing=summary(samples, "wall"),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        first_loss=losses[0],
        last_loss=losses[-1],
    )


def measure_step_workload(case: Case, backend: Backend, *, target_s: float, launch_included: bool) -> Timing:
    """Time a layer, a prefill or a decode step like a kernel: captured, or as the host launches it."""
    backend.release()
    backend.seed()
    with backend.work_stream():
        workload = _block(case, backend) if case.family == "block" else _generation(case, backend)
        return time_workload(workload, backend, target_s=target_s, launch_included=launch_included)


def _block(case: Case, backend: Backend) -> Workload:
    shape, settings = _settings(case)
    torch, backward = backend.torch, case.op == "block_step"
    one = ModelShape(**{**_fields(shape), "layers": 1, "vocab": 1})
    model = Decoder(backend=backend, shape=one, max_sequence=settings["seq"], trained=backward)
    weights = model.layers[0]
    x = backend.random((settings["micro_batch"], settings["seq"], shape.hidden), case.dtype, gradient=backward)
    upstream = torch.randn_like(x)

    def forward() -> object:
        with torch.no_grad():
            return model.layer(x, weights)

    def both() -> object:
        return torch.autograd.grad(model.layer(x, weights), [x, *weights.values()], upstream)

    return Workload(calls=(both if backward else forward,))


def _fields(shape: ModelShape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in ModelShape.__dataclass_fields__}


def _generation(case: Case, backend: Backend) -> Workload:
    """A pass over the prompts into empty caches, or one token more after caches filled by a real prefill."""
    shape, settings = _settings(case)
    sequences, context = settings["sequences"], settings["context"]
    torch = backend.torch
    model = Decoder(backend=backend, shape=shape, max_sequence=context + 1, trained=False)
    caches = model.empty_caches(sequences, context + 1)
    prompts = backend.integers(sequences * context, shape.vocab).view(sequences, context)

    def run(ids: Any, filled: int) -> Any:
        with torch.no_grad():
            _rewind(caches, filled)
            return model.next_token(ids, caches)

    if case.op == "prefill_step":
        return Workload(calls=(lambda: run(prompts, 0),))
    token = run(prompts, 0)
    return Workload(calls=(lambda: run(token, context),))


def _rewind(caches: list[Cache], filled: int) -> None:
    for cache in caches:
        cache.filled = filled
