"""E11: the fewest GPUs a reinforcement-learning job runs on, against the configurations verl's users published.

verl's "minimum" scripts apply every memory optimisation: states are sharded over all ranks and lie in host memory
while another call runs, layers are recomputed, one sequence is a micro-batch. So a number of GPUs is enough when each
call fits on its own: training with its states, generation with room in the cache for a sequence, and inference; and
what waits on the host fits there.
"""

from pathlib import Path

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.validate.dataflow.setups import cluster_of, model_named
from planner.validate.experiment import Experiment
from planner.validate.tables.published import rows_of
from profiles.stacks import find_stack

_FILE = "verl_min_hardware.csv"
_SIZES = (1, 2, 4, 8, 16, 32)
_PROMPT_TOKENS, _OUTPUT_TOKENS = 512, 1024  # verl examples/tuning: data.max_prompt_length, data.max_response_length
_SAMPLES, _BATCH = 5, 1024  # verl examples/tuning: rollout.n, data.train_batch_size
# Sizes of generations that were never released are those of the next one.
_MODELS = {"Qwen2-14B": "qwen2.5-14b", "Qwen2-32B": "qwen2.5-32b", "Qwen2-70B": "qwen2-72b"}


def fewest_gpus(folder: Path) -> Experiment:
    """E11: predicted minimum per published configuration, and whether the published one is predicted to fit."""
    found = []
    for row in rows_of(folder / _FILE):
        fitting = [size for size in _SIZES if fits(row, size)]
        listed = int(row["gpus"])
        found.append((row, listed, min(fitting, default=0), listed in fitting))
    right = [least > 0 and least <= listed and fits_listed for _, listed, least, fits_listed in found]
    exact = sum(least == listed for _, listed, least, _ in found)
    return Experiment(
        name="E11",
        title="Fewest GPUs (verl's minimum configurations)",
        criterion="the predicted minimum is at most the listed number, and the listed one is predicted to fit",
        passed=all(right),
        findings=(
            f"{sum(right)} of {len(right)} hold; {exact} minima are the listed number itself.",
            "Lower minima are not refuted: nobody published that fewer GPUs fail.",
        ),
        header=("model", "task", "GPU", "listed", "predicted minimum", "listed fits"),
        rows=tuple(
            (row["model"], row["task"], row["gpu"], str(listed), str(least or "none"), "yes" if fits_listed else "no")
            for row, listed, least, fits_listed in found
        ),
    )


def fits(row: dict[str, str], size: int) -> bool:
    """Whether every call of the job fits on so many devices, one after the other."""
    cluster = cluster_of(size, row["gpu"])
    setting = CallSetting(cluster=cluster, stack=find_stack(row["train"]), engines=("vllm",))
    model = model_named(_MODELS.get(row["model"], row["model"].lower()))
    batch = _SAMPLES * int(row["max_batch"] or _BATCH)
    for kind in CallKind:
        call = ModelCall(
            kind=kind,
            num_sequences=batch,
            prompt_tokens=_PROMPT_TOKENS,
            output=fixed_length(_OUTPUT_TOKENS),
            task="lora" if "LoRA" in row["task"] else "full",
        )
        table = call_costs(call, model, setting, [size])
        if not len(table):
            return False
        waiting = float(table.offloadable_bytes.min()) * min(size, cluster.node.devices_per_node)
        if waiting > cluster.node.host_memory_bytes:
            return False
    return True
