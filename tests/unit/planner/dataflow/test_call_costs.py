"""Tables of call costs: legal rows only, the same prices as plans, nothing useful dropped."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.evaluate import evaluate
from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, CallTable, ModelCall, concatenated
from costmodels.plan import ExecutionPlan, FloatArray, PlanBatch, Recompute, concatenate
from planner.dataflow.call_costs import CallSetting, call_context, call_costs, price_generation, price_plans
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.solving.dominance import undominated
from planner.dataflow.strategies import strategies, training_job
from planner.rules.base import Setting
from planner.space.constraints import legal
from planner.space.micro_batches import micro_batch_sizes
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.engines import find_engine
from profiles.errors import SpecError
from profiles.model_presets import resolve_model
from profiles.parameters import total_parameters
from profiles.stacks import find_stack, in_reinforcement_learning, load_stacks, rl_fit
from tests.fakes import mixture

CLUSTER = parse_cluster("4x8xH100", default_catalog(), fabric=None)
LLAMA = resolve_model("llama-2-7b", default_catalog(), allow_paths=False).spec
ONE = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, micro_batch_size=1, num_microbatches=16)])
SETTING = CallSetting(cluster=CLUSTER, stack=find_stack("megatron"))


def call(kind: CallKind = CallKind.TRAIN, **changes: object) -> ModelCall:
    values: dict[str, object] = {
        "kind": kind,
        "num_sequences": 512,
        "prompt_tokens": 1024,
        "output": fixed_length(1024),
        "mini_batches": 4 if kind is CallKind.TRAIN else 1,
    }
    return ModelCall(**values | changes)  # type: ignore[arg-type]


def test_devices_without_fused_attention_keep_the_scores() -> None:
    old, fsdp = (CallSetting(cluster=parse_cluster("8xV100"), stack=find_stack(name)) for name in ("megatron", "fsdp"))
    asked = call(precision="fp16")
    contexts = [call_context(asked, LLAMA, setting) for setting in (old, fsdp, SETTING)]
    assert [context.job.attention for context in contexts] == ["unfused", "flash", "flash"]
    flash = replace(contexts[0], job=training_job(asked))
    costs, fused = (evaluate(ONE, context) for context in (contexts[0], flash))
    scores_bytes = LLAMA.num_layers * LLAMA.num_attention_heads * 2048**2 * 2  # of one sequence in fp16
    assert costs.peak_memory_bytes[0] - fused.peak_memory_bytes[0] > scores_bytes


def test_training_is_priced_as_the_mini_batches_of_a_training_job() -> None:
    table = call_costs(call(), LLAMA, SETTING, [8, 16])
    row = int(np.argmin(table.time_s))
    plan = table.plans.plan(row)
    alone = evaluate(PlanBatch.from_plans([plan]), call_context(call(), LLAMA, SETTING))
    assert table.time_s[row] == pytest.approx(4 * alone.step_time_s[0])
    assert plan.data_parallel * plan.micro_batch_size * plan.num_microbatches == 128
    assert table.static_bytes[row] + table.active_bytes[row] == pytest.approx(alone.peak_memory_bytes[0])


def test_every_training_row_is_legal_for_the_framework() -> None:
    wanted = call()
    plans = strategies(LLAMA, wanted, 8, stack=SETTING.stack, domain_devices=8)
    assert legal(plans, Setting(model=LLAMA, job=training_job(wanted), num_devices=8, framework="megatron")).all()
    assert {1, 2, 4, 8} == set(plans.tensor_parallel.tolist())


def test_a_stack_that_hides_exchanges_trains_experts_without_whole_stages_and_whole_layers_recomputed() -> None:
    model, cluster = mixture(num_layers=8), parse_cluster("1x8xH100", default_catalog(), fabric=None)
    tables = {
        name: call_costs(call(), model, CallSetting(cluster=cluster, stack=find_stack(name)), [8], fitting=False).plans
        for name in ("megatron-core", "megatron-core-ep-overlap")
    }
    spread = {name: plans.take(np.flatnonzero(plans.expert_parallel > 1)) for name, plans in tables.items()}
    assert (spread["megatron-core"].pipeline_parallel > 1).any()
    hidden = spread["megatron-core-ep-overlap"]
    assert ((hidden.pipeline_parallel == 1) | (hidden.virtual_stages > 1)).all()
    assert not (spread["megatron-core-ep-overlap"].recompute == Recompute.FULL).any()


def test_weights_of_an_inference_call_are_two_bytes_each() -> None:
    table = call_costs(call(CallKind.INFERENCE), LLAMA, SETTING, [8])
    whole = (table.plans.tensor_parallel == 1) & (table.plans.pipeline_parallel == 1)
    shared = table.plans.zero_stage == 3
    assert table.static_bytes[whole & ~shared] == pytest.approx(2 * total_parameters(LLAMA))
    assert table.static_bytes[whole & shared] == pytest.approx(2 * total_parameters(LLAMA) / 8)
    assert (table.static_bytes == table.weight_bytes).all()
    assert (table.offloadable_bytes == table.static_bytes).all()


def test_inference_may_leave_the_last_micro_batch_smaller() -> None:
    table = call_costs(call(CallKind.INFERENCE, num_sequences=500), LLAMA, SETTING, [24])
    three = table.plans.data_parallel == 3
    assert three.any()
    assert (table.plans.num_microbatches * table.plans.micro_batch_size * 3 >= 500)[three].all()


def test_micro_batches_of_training_are_those_of_single_plans() -> None:
    """96 sequences per update on 1 rank: also 3, 6, 12, 24, 48 and 96, each of which divides what a rank has."""
    wanted = call(num_sequences=96, mini_batches=1)
    plans = strategies(LLAMA, wanted, 8, stack=SETTING.stack, domain_devices=8)
    setting = Setting(model=LLAMA, job=training_job(wanted), num_devices=8, framework="megatron")
    alone = plans.micro_batch_size[plans.data_parallel == 1]
    assert set(alone.tolist()) == set(micro_batch_sizes(setting)) == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96}
    seen = plans.data_parallel * plans.micro_batch_size * plans.num_microbatches
    assert (seen == 96).all()
    # Batches of powers of two are what they were: nothing is searched in vain.
    whole = strategies(LLAMA, call(), 8, stack=SETTING.stack, domain_devices=8)
    assert set(whole.micro_batch_size.tolist()) == {1, 2, 4, 8, 16, 32, 64, 128}


def test_a_batch_of_96_trains_faster_in_micro_batches_that_are_no_power_of_two() -> None:
    """FSDP gathers weights once per micro-batch: the largest that fits is wanted."""
    setting = CallSetting(
        cluster=parse_cluster("4x8xA100-80GB", default_catalog(), fabric=None), stack=find_stack("fsdp")
    )
    model = resolve_model("llama-3-70b", default_catalog(), allow_paths=False).spec
    table = call_costs(
        call(num_sequences=96, mini_batches=1, prompt_tokens=512, output=fixed_length(512)), model, setting, [32]
    )
    size = table.plans.micro_batch_size
    two = size & (size - 1) == 0
    assert table.time_s.min() < 0.97 * table.time_s[two].min()
    assert not two[np.argmin(table.time_s)]


@pytest.mark.parametrize(
    ("kind", "pins"),
    [
        (CallKind.TRAIN, {"micro_batch_size": 4}),
        (CallKind.INFERENCE, {"micro_batch_size": 4, "tensor_parallel": 1}),
        (CallKind.TRAIN, {"zero_stage": 1, "micro_batch_size": 2}),
    ],
)
def test_what_is_fixed_is_fixed_before_better_ways_are_preferred(kind: CallKind, pins: dict[str, int]) -> None:
    """Rows that only others beat count where the user asks for them."""
    plans = strategies(LLAMA, call(kind), 8, stack=SETTING.stack, domain_devices=8)
    asked = np.all([getattr(plans, name) == value for name, value in pins.items()], axis=0)
    machine = replace(SETTING, cluster=parse_cluster("1x8xH100", default_catalog(), fabric=None))
    every = price_plans(plans.take(np.flatnonzero(asked)), call(kind), LLAMA, machine)
    fits = every.static_bytes + every.active_bytes <= CLUSTER.device.usable_memory_bytes
    table = call_costs(call(kind), LLAMA, SETTING, [8], pins=pins)
    assert table.time_s.min() == pytest.approx(every.time_s[fits].min())
    assert all((getattr(table.plans, name) == value).all() for name, value in pins.items())


def test_a_fixed_micro_batch_need_not_be_one_of_those_considered() -> None:
    wanted = call(num_sequences=90, mini_batches=1)
    assert not (call_costs(wanted, LLAMA, SETTING, [8]).plans.micro_batch_size == 9).any()
    table = call_costs(wanted, LLAMA, SETTING, [8], pins={"micro_batch_size": 9})
    assert len(table)
    assert (table.plans.micro_batch_size * table.plans.num_microbatches * table.plans.data_parallel == 90).all()
    assert not len(call_costs(wanted, LLAMA, SETTING, [8], pins={"micro_batch_size": 7}))


def test_inference_of_any_number_of_sequences_has_powers_of_two_and_divisors() -> None:
    plans = strategies(LLAMA, call(CallKind.INFERENCE, num_sequences=84), 1, stack=SETTING.stack, domain_devices=8)
    assert set(plans.micro_batch_size.tolist()) == {1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 28, 32, 64}
    rest = plans.micro_batch_size * plans.num_microbatches - 84
    assert ((rest >= 0) & (rest < plans.micro_batch_size)).all()


def test_a_critic_computes_no_vocabulary() -> None:
    actor = call_costs(call(CallKind.INFERENCE), LLAMA, SETTING, [8])
    critic = call_costs(call(CallKind.INFERENCE, value_head=True), LLAMA, SETTING, [8])
    assert critic.time_s.min() < actor.time_s.min()
    assert critic.active_bytes.min() < actor.active_bytes.min()


@pytest.mark.parametrize("host", [1.0, 1.36])
def test_trainers_between_generations_are_slower_and_wait_for_the_host_at_every_layer_with_experts(host: float) -> None:
    """The terms NeMo-RL's steps are fitted with (``validate.dataflow.step_fit``), through the planner's own path."""
    node = replace(CLUSTER.node, host_time_scale=host)
    # What it takes in pre-training is replaced.
    unwaiting = replace(SETTING.stack, expert_layer_s=0.0, expert_issue_s=0.0)
    plain = replace(SETTING, cluster=replace(CLUSTER, node=node), stack=unwaiting)
    between = replace(plain, stack=in_reinforcement_learning(SETTING.stack))
    fitted = rl_fit()
    model = resolve_model("qwen3-30b-a3b", default_catalog(), allow_paths=False).spec
    for kind, forward_and_backward in ((CallKind.INFERENCE, 1), (CallKind.TRAIN, 2)):
        wanted = call(kind)
        plans = strategies(model, wanted, 8, stack=SETTING.stack, domain_devices=8)
        kept = (plans.recompute == Recompute.NONE) & (plans.pipeline_parallel == 1)
        plans = plans.take(np.flatnonzero(kept)[::40])
        before, after = (price_plans(plans, wanted, model, setting).time_s for setting in (plain, between))
        passes = plans.num_microbatches * model.num_moe_layers * forward_and_backward * wanted.mini_batches
        expected = fitted["training_scale"] * before + host * fitted["expert_pass_s"] * passes
        assert after == pytest.approx(expected, rel=1e-3)


def test_a_time_scale_of_ones_own_runs_stays() -> None:
    own = replace(SETTING.stack, step_time_scale=1.4)
    assert in_reinforcement_learning(own).step_time_scale == 1.4


@pytest.mark.parametrize(("job", "between"), [("grpo", True), ("ppo", True), ("dpo", False)])
def test_workflows_that_generate_and_train_have_the_slower_trainer(job: str, between: bool) -> None:
    request = resolve_flow(job, {"": "llama-2-7b"}, "8xH100", FlowOptions(batch=64, framework="megatron"))
    stack = find_stack("megatron", load_stacks("full"))
    assert request.stack == (in_reinforcement_learning(stack) if between else stack)


def test_host_time_of_generation_is_that_of_the_nodes_cpu() -> None:
    wanted = call(CallKind.GENERATE)
    engine = replace(find_engine("vllm"), step_overhead_s=3e-3, sequence_overhead_s=0.0)
    plans = PlanBatch.from_columns(1, tensor_parallel=8, data_parallel=1, micro_batch_size=8)

    def seconds(step_s: float, scale: float) -> FloatArray:
        node = replace(CLUSTER.node, host_time_scale=scale)
        where = replace(SETTING, cluster=replace(CLUSTER, node=node))
        timed = replace(engine, step_overhead_s=step_s)
        return price_generation(plans, wanted, LLAMA, where, timed, room_bytes=7e10).time_s

    of_host_s = seconds(3e-3, 1.0) - seconds(0.0, 1.0)
    assert (of_host_s > 1024 * 3e-3).all()  # every token is a step
    assert seconds(3e-3, 2.5) - seconds(0.0, 2.5) == pytest.approx(2.5 * of_host_s)


def test_inference_is_a_fraction_of_training() -> None:
    trained = call_costs(call(CallKind.TRAIN, mini_batches=1), LLAMA, SETTING, [8])
    inferred = call_costs(call(CallKind.INFERENCE), LLAMA, SETTING, [8])
    assert 0.2 < inferred.time_s.min() / trained.time_s.min() < 0.4


def test_dominated_rows_go_and_only_those() -> None:
    wanted = call()
    plans = concatenate(strategies(LLAMA, wanted, size, stack=SETTING.stack, domain_devices=8) for size in (8, 32))
    whole = call_costs(wanted, LLAMA, SETTING, [8, 32], fitting=False)
    priced = evaluate(plans, call_context(wanted, LLAMA, SETTING))
    assert len(whole) < len(plans)
    for row in range(len(plans)):
        alike = np.flatnonzero(
            (whole.plans.tensor_parallel == plans.tensor_parallel[row])
            & (whole.plans.pipeline_parallel == plans.pipeline_parallel[row])
            & (whole.plans.data_parallel == plans.data_parallel[row])
        )
        better = (whole.time_s[alike] <= 4 * priced.step_time_s[row] * (1 + 1e-12)) & (
            whole.static_bytes[alike] + whole.active_bytes[alike] <= priced.peak_memory_bytes[row] * (1 + 1e-12)
        )
        assert better.any()


def test_equal_rows_keep_one() -> None:
    table = call_costs(call(), LLAMA, SETTING, [8])
    assert len(undominated(concatenated([table, table]))) == len(table)


def test_what_does_not_fit_is_left_out_unless_asked_for() -> None:
    big = resolve_model("llama-2-70b", default_catalog(), allow_paths=False).spec
    assert len(call_costs(call(), big, SETTING, [8])) == 0
    table = call_costs(call(), big, SETTING, [8], fitting=False)
    assert (table.static_bytes + table.active_bytes > CLUSTER.device.usable_memory_bytes).all()


def test_experts_get_their_degrees() -> None:
    table = call_costs(call(), mixture(), SETTING, [8])
    assert {1, 2, 4, 8} <= set(table.plans.expert_parallel.tolist())


def test_several_sizes_are_priced_as_each_alone() -> None:
    together = call_costs(call(), LLAMA, SETTING, [1, 2, 4, 8, 16])
    for size in (2, 8):
        alone = call_costs(call(), LLAMA, SETTING, [size])
        part = together.take(np.flatnonzero(together.num_devices == size))
        assert part.time_s == pytest.approx(alone.time_s, rel=1e-12)
        assert part.active_bytes == pytest.approx(alone.active_bytes, rel=1e-12)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "sizes: must be 1 to 4096 numbers of devices; got 0"),
        ([40], "sizes: must be between 1 and the 32 devices; got 40"),
        ([12], "sizes: must be whole nodes of 8 devices, or part of one; got 12"),
    ],
)
def test_sizes_the_cluster_has_not_are_refused(sizes: list[int], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        call_costs(call(), LLAMA, SETTING, sizes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_sequences": 0}, "call.num_sequences: must be between 1 and 4194304; got 0"),
        (
            {"mini_batches": 3},
            "call.mini_batches: must divide the 512 sequences; got 3. Hint: a divisor of the batch",
        ),
        ({"task": "pretrain"}, "call.task: unknown value 'pretrain'. Hint: use one of full, lora, qlora"),
    ],
)
def test_calls_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        call(**changes)
    assert str(caught.value) == message


def test_generation_needs_lengths() -> None:
    with pytest.raises(SpecError, match=r"call\.output: is needed"):
        call(CallKind.GENERATE, output=None)


def test_generation_rows_fit_the_memory_their_engine_may_use() -> None:
    setting = replace(SETTING, engines=("vllm", "trainer"))
    short = call(CallKind.GENERATE, prompt_tokens=256, output=fixed_length(256))
    table = call_costs(short, LLAMA, setting, [8])
    assert table.engines == ("vllm", "trainer")
    used = table.static_bytes + table.active_bytes
    assert (used[table.engine == 0] <= 0.9 * CLUSTER.device.memory_bytes).all()
    assert (used[table.engine == 1] <= CLUSTER.device.usable_memory_bytes).all()
    assert (table.static_bytes == table.weight_bytes).all()
    whole = (table.engine == 0) & (table.plans.tensor_parallel * table.plans.pipeline_parallel == 1)
    assert table.static_bytes[whole] == pytest.approx(2 * total_parameters(LLAMA))
    assert (table.concurrent <= 512).all()
    assert table.concurrent[whole].max() == 64  # all sequences of a replica


def test_fewer_sequences_at_once_take_less_memory_and_more_time() -> None:
    table = call_costs(call(CallKind.GENERATE), LLAMA, replace(SETTING, engines=("vllm",)), [8])
    one = table.take(np.flatnonzero((table.plans.tensor_parallel == 2) & (table.plans.pipeline_parallel == 1)))
    assert len(one) > 3
    order = np.argsort(one.time_s)
    assert (np.diff(one.active_bytes[order]) < 0).all()


def test_a_model_of_many_gpus_spans_nodes_in_engines_only() -> None:
    big = resolve_model("deepseek-v3", default_catalog(), allow_paths=False).spec
    wanted = call(CallKind.GENERATE, num_sequences=512)
    served = call_costs(wanted, big, replace(SETTING, engines=("vllm",)), [32])
    assert {(16, 2), (32, 1), (8, 4)} <= set(
        zip(served.plans.tensor_parallel.tolist(), served.plans.pipeline_parallel.tolist(), strict=True)
    )
    eager = call_costs(wanted, big, replace(SETTING, engines=("trainer",)), [32])
    assert (eager.plans.tensor_parallel <= 8).all()


def test_an_engine_beats_eager_generation_of_a_split_model() -> None:
    big = resolve_model("llama-2-70b", default_catalog(), allow_paths=False).spec
    served, eager = (
        call_costs(call(CallKind.GENERATE), big, replace(SETTING, engines=(name,)), [32]).time_s.min()
        for name in ("vllm", "trainer")
    )
    assert served < 0.8 * eager


def test_tables_of_a_large_dataflow_are_quick() -> None:
    # 4 x 70B PPO on 128 GPUs: six calls, 19 sizes; a fifth of the time allowed.
    from time import process_time

    cluster = parse_cluster("16x8xH100", default_catalog(), fabric=None)
    big = resolve_model("llama-2-70b", default_catalog(), allow_paths=False).spec
    setting = CallSetting(cluster=cluster, stack=find_stack("megatron"), engines=("trainer", "vllm"))
    sizes = [1, 2, 4, *range(8, 129, 8)]
    calls = [
        call(CallKind.GENERATE),
        *(call(CallKind.INFERENCE, value_head=head) for head in (False, True, True)),
        *(call(CallKind.TRAIN, value_head=head) for head in (False, True)),
    ]
    start = process_time()
    rows = sum(len(call_costs(wanted, big, setting, sizes)) for wanted in calls)
    assert process_time() - start < 4.0
    assert rows > 2000


def test_generation_needs_an_engine() -> None:
    with pytest.raises(SpecError, match="engines: names none, but the call generates"):
        call_costs(call(CallKind.GENERATE), LLAMA, replace(SETTING, engines=()), [8])
    with pytest.raises(SpecError, match="engine: unknown name 'vlm'"):
        call_costs(call(CallKind.GENERATE), LLAMA, replace(SETTING, engines=("vlm",)), [8])


def test_joined_tables_join_their_engines() -> None:
    table: CallTable = call_costs(call(), LLAMA, SETTING, [8])
    other = replace(table, engines=("other",))
    joined = concatenated([table, other])
    assert joined.engines == ("trainer", "other")
    assert joined.engine.tolist() == [0] * len(table) + [1] * len(table)
    assert joined.scaled(2.0).time_s.sum() == pytest.approx(4 * table.time_s.sum())


@pytest.mark.parametrize("kind", [CallKind.INFERENCE, CallKind.GENERATE])
def test_autocast_casts_the_weights_of_models_that_are_trained_only(kind: CallKind) -> None:
    """Engines and scored models hold 16-bit weights: one more read and write of them in fp32 doubled decode steps."""
    trainer = find_stack("hf-trainer")
    plain = replace(trainer, autocast_weights=False)
    there, without = (call_costs(call(kind), LLAMA, replace(SETTING, stack=used), [8]) for used in (trainer, plain))
    assert there.time_s == pytest.approx(without.time_s)
    trained = [evaluate(ONE, call_context(call(), LLAMA, replace(SETTING, stack=used))) for used in (trainer, plain)]
    assert trained[0].step_time_s[0] > 1.02 * trained[1].step_time_s[0]
