"""Generation calls: steps and seconds of batches, waves, refilled places and tails; memory by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.boundary_transfers import boundary_transfer_s
from costmodels.lengths import OutputLengths, fixed_length, log_normal_lengths
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.serving.generation import GenerationEstimate, engine_context, generation, generation_memory, prompt_job
from profiles.engines import EngineSpec, find_engine, load_engines
from profiles.errors import SpecError
from profiles.parameters import total_parameters
from tests.fakes import (
    RateKernels,
    RingCollectives,
    UnitCollectives,
    UnitKernels,
    context,
    gpt,
    job,
    llama,
    mixture,
    stack,
)

V, L, H = 32768, 8, 1024
# Every step takes a second, nothing else takes time: seconds are steps.
CLOCK = EngineSpec(name="clock", description="", captures_graphs=True, step_overhead_s=1.0, kernels="vllm-1;fa2")
FREE = {"kernels": UnitKernels(ops=())}
WHOLE = ExecutionPlan(micro_batch_size=64)
UNIFORM = OutputLengths(tokens=(0.0, 1000.0), longer=(1.0, 0.0))


def call(output: OutputLengths, **changes: Any) -> ModelCall:
    values: dict[str, Any] = {"kind": CallKind.GENERATE, "num_sequences": 64, "prompt_tokens": 128, "output": output}
    return ModelCall(**values | changes)


def generated(
    wanted: ModelCall,
    running: int,
    engine: EngineSpec = CLOCK,
    plan: ExecutionPlan = WHOLE,
    *,
    staggered: bool = False,
    **changes: Any,
) -> GenerationEstimate:
    where = context(**FREE | changes)
    return generation(PlanBatch.from_plans([plan]), wanted, engine, where, np.array([running]), np.array([staggered]))


def decode_s(found: GenerationEstimate) -> float:
    return float(found.time_s[0] - found.prefill_s[0])


def test_equal_lengths_take_a_step_per_token() -> None:
    found = generated(call(fixed_length(500)), 64)
    assert decode_s(found) == pytest.approx(500)
    assert found.steps[0] == pytest.approx(500)
    assert found.prefill_s[0] == 1  # one pass over 64 prompts


def test_the_longest_of_all_replicas_decides() -> None:
    one = generated(call(UNIFORM), 64)
    assert decode_s(one) == pytest.approx(UNIFORM.longest_of(64), rel=3e-3)
    spread = generated(call(UNIFORM), 64, plan=ExecutionPlan(data_parallel=8, micro_batch_size=8))
    assert decode_s(spread) == pytest.approx(UNIFORM.longest_of(64), rel=3e-3)


def test_equal_lengths_run_in_waves_when_places_are_few() -> None:
    found = generated(call(fixed_length(500)), 24)
    assert decode_s(found) == pytest.approx(3 * 500)  # 24 + 24 + 16


def test_a_static_batch_waits_for_its_longest() -> None:
    static = replace(CLOCK, continuous=False)
    found = generated(call(UNIFORM), 32, static)
    assert decode_s(found) == pytest.approx(2 * UNIFORM.longest_of(32), rel=3e-3)


def test_ended_sequences_are_computed_on_in_a_static_batch_only() -> None:
    per_sequence = EngineSpec(
        name="s", description="", captures_graphs=True, sequence_overhead_s=1.0, kernels="vllm-1;fa2"
    )
    all_tokens = 64 * UNIFORM.mean
    leaving = decode_s(generated(call(UNIFORM), 64, per_sequence))
    staying = decode_s(generated(call(UNIFORM), 64, replace(per_sequence, continuous=False)))
    assert leaving == pytest.approx(all_tokens, rel=0.03)
    assert staying == pytest.approx(64 * UNIFORM.longest_of(64), rel=3e-3)


@pytest.mark.parametrize("running", [2, 7, 16, 63])
def test_refilled_places_do_all_the_work(running: int) -> None:
    # A second per running sequence and step: seconds are generated tokens, whatever the order.
    per_sequence = EngineSpec(
        name="s", description="", captures_graphs=True, sequence_overhead_s=1.0, kernels="vllm-1;fa2"
    )
    for lengths in (UNIFORM, log_normal_lengths(mean=300, sigma=0.7, most=4096)):
        found = decode_s(generated(call(lengths), running, per_sequence))
        assert found == pytest.approx(64 * lengths.mean, rel=0.05)
    staggered = decode_s(generated(call(fixed_length(300)), running, per_sequence, staggered=True))
    assert staggered == pytest.approx(64 * 300, rel=0.05)


def test_refilled_places_take_few_steps_more_than_their_share() -> None:
    found = decode_s(generated(call(UNIFORM), 8))
    assert 64 * 500 / 8 < found < 64 * 500 / 8 + 1000


def test_prompts_are_read_in_passes() -> None:
    clocked = generated(call(fixed_length(1)), 64, plan=ExecutionPlan(micro_batch_size=10))
    assert clocked.prefill_s[0] == 7
    flops = generated(call(fixed_length(1)), 64, replace(CLOCK, step_overhead_s=0.0), kernels=UnitKernels())
    layer = 24 * H * H * 128 + 4 * 128 * 128 * H / 2
    assert flops.prefill_s[0] == pytest.approx(64 * L * layer)  # the head sees one token of each prompt


def test_samples_of_a_prompt_read_it_once() -> None:
    sharing = replace(CLOCK, shares_prefixes=True)
    plan = ExecutionPlan(micro_batch_size=1)
    assert generated(call(fixed_length(1), samples_per_prompt=8), 64, sharing, plan).prefill_s[0] == 8
    assert generated(call(fixed_length(1), samples_per_prompt=8), 64, CLOCK, plan).prefill_s[0] == 64


def test_the_trainer_pays_for_launches_and_an_engine_does_not() -> None:
    trainer = find_engine("trainer")
    graphs = replace(trainer, captures_graphs=True)
    eager, captured = (
        decode_s(generated(call(fixed_length(100)), 64, e, kernels=RateKernels())) for e in (trainer, graphs)
    )
    # 21 kernels per layer of this gpt(): 12 more than fused ones, 5 of them its activation.
    assert eager > 100 * L * 20 * trainer.kernel_launch_s
    assert captured < eager / 5


def test_memory_is_weights_cache_and_working_space() -> None:
    engine = replace(CLOCK, graph_bytes=1e6, context_bytes=2e6)
    wanted = call(fixed_length(256))
    where = engine_context(context(model=llama()), engine, prompt_job(wanted))
    found = generation_memory(PlanBatch.from_plans([ExecutionPlan()]), wanted, engine, where)
    assert found.weight_bytes[0] == 2 * total_parameters(llama())
    per_token = L * 2 * 2 * 4 * 64
    assert found.together_bytes[0] == (128 + 256 + 8) * per_token
    assert found.staggered_bytes[0] == (128 + 128 + 8) * per_token
    assert found.fixed_bytes == 3e6
    logits = V * (2 + 12)
    running = np.array([1000])
    cache = 1000 * found.together_bytes[0]
    assert found.active_bytes(running, np.array([False]))[0] == pytest.approx(cache + 1000 * logits + 3e6)
    room = found.weight_bytes[0] + 3e6 + 10.5 * (found.together_bytes[0] + logits)
    assert found.most_running(room, staggered=False)[0] <= 10
    assert found.most_running(1e6, staggered=False)[0] == 0


def test_an_engine_that_never_evicts_runs_fewer_at_once() -> None:
    wanted, plans = call(fixed_length(896)), PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2)])
    where = context(model=llama())
    growing, reserving = (
        generation_memory(plans, wanted, replace(CLOCK, reserves_whole=whole), engine_context(where, CLOCK, where.job))
        for whole in (False, True)
    )
    # Room for 128 + 896 tokens each from the start, of which half the output is there on average.
    assert reserving.staggered_bytes[0] == reserving.together_bytes[0]
    assert growing.staggered_bytes[0] / reserving.staggered_bytes[0] == pytest.approx((128 + 448 + 8) / 1024, rel=1e-3)
    room = 2.0**32
    fewer, more = (found.most_running(room, staggered=True)[0] for found in (reserving, growing))
    assert 1.6 < more / fewer < 1.9


def test_room_for_so_many_is_what_so_many_take() -> None:
    wanted = call(fixed_length(256))
    where = engine_context(context(model=llama()), CLOCK, prompt_job(wanted))
    found = generation_memory(PlanBatch.from_plans([ExecutionPlan()]), wanted, CLOCK, where)
    for room in (1e9, 4e9):
        for staggered in (False, True):
            most = found.most_running(room, staggered=staggered)
            taken = found.weight_bytes + found.active_bytes(most, np.array([staggered]))
            more = found.weight_bytes + found.active_bytes(most + 1, np.array([staggered]))
            assert taken[0] <= room < more[0]


def test_engines_keep_none_of_the_training_stack_s_scales() -> None:
    slow = stack(gemm_time_scale=2.0, memory_time_scale=3.0, norm="eager", rotary="eager", activation="eager")
    where = context(stack=slow)
    engine = engine_context(where, find_engine("vllm"), where.job).stack
    assert (engine.gemm_time_scale, engine.memory_time_scale) == (1.0, 1.0)
    assert {engine.norm, engine.rotary, engine.activation} == {"fused"}
    assert engine.kernel_launch_s == 0.0
    trainer = engine_context(where, find_engine("trainer"), where.job).stack
    assert (trainer.gemm_time_scale, trainer.norm, trainer.rotary) == (2.0, "module", "eager")
    assert trainer.kernel_launch_s == find_engine("trainer").kernel_launch_s


@pytest.mark.parametrize("name", ["vllm", "trainer"])
@pytest.mark.parametrize(
    "training",
    [{"captures_iterations": True}, {"blocking_launches": True}, {"expert_parallel_overlap": 0.8},
     {"sends_tokens_once": True}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_generating_knows_nothing_of_how_the_stack_trains(name: str, training: dict[str, Any]) -> None:
    def time_s(**changes: Any) -> float:
        plan = ExecutionPlan(expert_parallel=4, data_parallel=4, micro_batch_size=16)
        prices = {"kernels": RateKernels(), "collectives": RingCollectives(1e9, 1e9)}
        where = {"model": mixture(), "stack": stack(**changes), **prices}
        return float(generated(call(fixed_length(100)), 16, find_engine(name), plan, **where).time_s[0])

    assert time_s(**training) == time_s()


def test_the_trainer_reads_prompts_with_the_attention_it_has_and_an_engine_with_a_fused_one() -> None:
    """Where the stack has no fused kernel, a layer makes the scores of all prompts that are read at once."""
    wanted, plans, trainer = call(fixed_length(500)), PlanBatch.from_plans([WHOLE]), find_engine("trainer")
    unfused = context(job=job(attention="unfused"))
    working = {}
    for engine in (trainer, CLOCK):
        for where in (context(), unfused):
            memory = generation_memory(plans, wanted, engine, engine_context(where, engine, prompt_job(wanted)))
            working[engine.name, where.job.attention] = memory.working_bytes[0]
    rows = 64 * gpt().num_attention_heads * 128
    scores, sums = 2 * 128 * rows, 4 * rows  # a fused kernel keeps the logarithm of each row's sum
    assert working["trainer", "unfused"] - working["trainer", "flash"] == pytest.approx(scores - sums)
    assert working["clock", "unfused"] == working["clock", "flash"]
    kernels = RateKernels(flops_per_s=1e12, bytes_per_s=1e12)
    slow, fast = (
        generated(wanted, 64, trainer, kernels=kernels, job=job(attention=name)).prefill_s[0]
        for name in ("unfused", "flash")
    )
    assert slow > fast


def test_engines_run_their_own_layers_and_kernels_for_experts() -> None:
    own: dict[str, Any] = {
        "expert_library": "cutlass",
        "expert_dispatch": "masked",
        "separate_products": True,
        "fixed_capacity": True,
        "repeats_key_values": True,
    }
    plain = stack(expert_dispatch="fused")
    where = context(model=mixture(), stack=stack(**own))
    engine = engine_context(where, find_engine("vllm"), where.job).stack
    assert {name: getattr(engine, name) for name in own} == {name: getattr(plain, name) for name in own}
    trainer = engine_context(where, find_engine("trainer"), where.job).stack
    assert {name: getattr(trainer, name) for name in own} == own


@pytest.mark.parametrize("scatters", [False, True])
def test_engines_send_parts_to_the_next_stage_whatever_the_trainer_does(scatters: bool) -> None:
    where = context(stack=stack(scatters_boundaries=scatters))
    found = [engine_context(where, find_engine(name), where.job) for name in ("vllm", "sglang", "trainer")]
    assert [each.stack.scatters_boundaries for each in found] == [True, True, scatters]
    plans = PlanBatch.from_plans([ExecutionPlan(tensor_parallel=4, pipeline_parallel=2)])
    sizes = [float(boundary_transfer_s(plans, replace(each, collectives=UnitCollectives()))[0]) for each in found]
    assert sizes[2] / sizes[0] == (1 if scatters else 4)


def test_every_figure_of_an_engine_has_a_source() -> None:
    told = {"name", "description", "sources", "kernels", "residual_log_std", "continuous", "fused_experts"}
    plain = EngineSpec(name="", description="")
    for engine in load_engines().values():
        for name in EngineSpec.__dataclass_fields__:
            if name not in told and getattr(engine, name) != getattr(plain, name):
                assert name in engine.sources, (engine.name, name)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        find_engine("vlm")
    assert str(caught.value) == "engine: unknown name 'vlm'. Hint: did you mean 'vllm' or 'vllm-0.3' or 'vllm-2024'?"


@settings(max_examples=30)
@given(
    sequences=st.integers(1, 512),
    prompt=st.integers(1, 4096),
    output=st.integers(2, 4096),
    running=st.integers(1, 256),
    sigma=st.sampled_from([0.0, 0.5, 1.2]),
)
def test_more_work_or_a_slower_device_is_never_faster(
    sequences: int, prompt: int, output: int, running: int, sigma: float
) -> None:
    engine = find_engine("vllm-2024")

    def seconds(count: int, tokens: int, longest: int, bytes_per_s: float) -> float:
        lengths = log_normal_lengths(mean=0.5 * longest + 0.5, sigma=sigma, most=longest)
        wanted = call(lengths, num_sequences=count, prompt_tokens=tokens)
        kernels = RateKernels(bytes_per_s=bytes_per_s)
        return float(generated(wanted, running, engine, ExecutionPlan(), kernels=kernels, model=gpt()).time_s[0])

    base = seconds(sequences, prompt, output, 1e12)
    slack = 1 - 1e-3
    assert seconds(2 * sequences, prompt, output, 1e12) >= base * slack
    assert seconds(sequences, 2 * prompt, output, 1e12) >= base * slack
    assert seconds(sequences, prompt, 2 * output, 1e12) >= base * slack
    assert seconds(sequences, prompt, output, 2e12) <= base / slack
