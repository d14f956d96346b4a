"""E9, generation part: how many GPUs a replica should have, on HybridFlow's 16 A100s.

HybridFlow (arXiv:2409.19256, figure 15) trains with t = 8 and d = 2 and generates with smaller tensor-parallel groups.
All models are colocated and states are not offloaded: the cache does without the actor's gradients and optimizer
states, all that training the critic keeps, and the weights of the reference and the reward model, which verl's script
(``planner.validate.dataflow.hybridflow``) leaves on the GPUs too. The actor's weights are reused.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from costmodels.model_calls import CallKind
from planner.dataflow.call_costs import price_generation, price_plans
from planner.validate.dataflow.hybridflow import (
    generation_plans,
    hybridflow_call,
    hybridflow_engine,
    hybridflow_model,
    hybridflow_setting,
    training_plans,
)
from planner.validate.experiment import Experiment
from planner.validate.tables.published import rows_of

_FILE = "hybridflow_fig15_gen_tp_digitised.csv"
_DEVICES = 16
_MODELS = ("7B", "13B")
_BEST_13B = 4  # the figure's optimum


def generation_by_replica_size(folder: Path) -> Experiment:
    """E9 (generation): seconds by tensor-parallel degree, against figure 15."""
    rows = [(row["model"], int(row["gen_tp"]), float(row["gen_time_s_digitised"])) for row in rows_of(folder / _FILE)]
    predicted = {(name, tensor): predicted_s(name, tensor) for name, tensor, _ in rows}
    measured = {(name, tensor): seconds for name, tensor, seconds in rows}
    best = {
        name: min((seconds, size) for (other, size), seconds in predicted.items() if other == name) for name in _MODELS
    }
    small = [predicted["7B", tensor] for tensor in (8, 4, 2)]
    falling = all(more > fewer for more, fewer in pairwise(small))
    return Experiment(
        name="E9g",
        title="Generation by size of the replicas (HybridFlow figure 15)",
        criterion="13B is fastest with 4 GPUs to a replica; 7B gets faster from 8 to 4 to 2",
        passed=best["13B"][1] == _BEST_13B and falling,
        findings=(
            f"Fastest: 13B with {best['13B'][1]} GPUs, 7B with {best['7B'][1]} (measured 4 and 1).",
            "Seconds of 7B are not comparable: reading 64 caches of 1024 to 2048 tokens and the weights takes at least "
            "33 s at the full memory bandwidth of an A100, reading prompts apart; 31.0 s were measured.",
            _pairs(measured, predicted),
            "Beside all states 13B on one GPU has room for a few sequences as priced. Were the frozen models on the "
            f"host, against which only the script speaks, 13B would take {_without_frozen()} s with 8, 4, 2 and 1 "
            "GPUs.",
        ),
        header=("model", "GPUs per replica", "measured s", "predicted s"),
        rows=tuple(
            (name, str(tensor), f"{seconds:.1f}", f"{predicted[name, tensor]:.1f}") for name, tensor, seconds in rows
        ),
    )


def _without_frozen() -> str:
    return ", ".join(f"{predicted_s('13B', tensor, frozen=False):.0f}" for tensor in (8, 4, 2, 1))


def predicted_s(name: str, tensor: int, *, frozen: bool = True) -> float:
    """Seconds of one generation call, in the memory that training and the frozen models leave.

    Args:
        name: Size of the model.
        tensor: GPUs to a replica.
        frozen: Whether reference and reward model are on the GPUs meanwhile.
    """
    setting = hybridflow_setting(_DEVICES)
    engine, model = hybridflow_engine(), hybridflow_model(name)
    actor, critic = (
        price_plans(training_plans(name, _DEVICES), call, call.model(model), setting)
        for call in (hybridflow_call(CallKind.TRAIN, value_head=head) for head in (False, True))
    )
    frozen_bytes = frozen * (actor.weight_bytes[0] + critic.weight_bytes[0])
    resident_bytes = float(actor.static_bytes[0] - actor.weight_bytes[0] + critic.static_bytes[0] + frozen_bytes)
    table = price_generation(
        generation_plans(tensor, _DEVICES, engine),
        hybridflow_call(CallKind.GENERATE),
        model,
        setting,
        engine,
        room_bytes=float(engine.room_bytes(setting.cluster.device, 0.0, 0.0)) - resident_bytes,
    )
    return float(table.time_s.min())


def _pairs(measured: Mapping[tuple[str, int], float], predicted: Mapping[tuple[str, int], float]) -> str:
    """How many pairs of one model are in the measured order."""
    keys: Sequence[tuple[str, int]] = list(measured)
    pairs = [(a, b) for i, a in enumerate(keys) for b in keys[i + 1 :] if a[0] == b[0]]
    right = sum((measured[a] < measured[b]) == (predicted[a] < predicted[b]) for a, b in pairs)
    return f"{right} of {len(pairs)} pairs of one model are in the measured order."
