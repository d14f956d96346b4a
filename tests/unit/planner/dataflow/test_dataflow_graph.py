"""Workflows as graphs: what is refused and how, what waits for what, and files of one's own."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from planner.dataflow.graphs.file import graph_from_mapping, load_graph
from planner.dataflow.graphs.graph import Call, Dataflow
from planner.dataflow.graphs.presets import build_preset
from planner.dataflow.graphs.roles import Role, RoleCopy
from planner.dataflow.solving.iterations import iteration_edges
from profiles.errors import SpecError

ACTOR = Role(name="actor")
REF = Role(name="ref", like="actor")
GEN = Call(name="gen", kind="generate", role="actor", inputs=("prompts",), outputs=("text",))
INFER = Call(name="infer", kind="inference", role="ref", inputs=("text",), outputs=("scores",))
TRAIN = Call(name="train", kind="train", role="actor", inputs=("text", "scores"), mini_batches=4)
CALLS = (GEN, INFER, TRAIN)


def flow(*calls: Call, roles: tuple[Role, ...] = (ACTOR, REF), **rest: Any) -> Dataflow:
    return Dataflow(name="mine", roles=roles, calls=calls, **rest)


def call(**values: Any) -> Call:
    return Call(**({"name": "x", "kind": "inference", "role": "ref", "inputs": ("prompts",)} | values))


REFUSED = [
    pytest.param((GEN, INFER, call(role="reff")), {}, "job.calls.x.role", "unknown role 'reff'", id="unknown role"),
    pytest.param((GEN, INFER, call(role="")), {}, "job.calls.x.role", "is required", id="no role"),
    pytest.param(
        (GEN, INFER, call(inputs=("txt",))), {}, "job.calls.x.inputs", "nothing produces 'txt'", id="producer"
    ),
    pytest.param((GEN, INFER, call(inputs=())), {}, "job.calls.x.inputs", "works on something", id="no inputs"),
    pytest.param((GEN, INFER, call(outputs=("text",))), {}, "job.calls.x.outputs", "also written by gen", id="twice"),
    pytest.param((GEN, INFER, call(outputs=("prompts",))), {}, "job.calls.x.outputs", "by the data set", id="data"),
    pytest.param((GEN, INFER, call(name="gen")), {}, "job.calls", "'gen' is there 2 times", id="names"),
    pytest.param((GEN, INFER, call(name="Gen 2")), {}, "job.calls", "'Gen 2' is no name", id="name"),
    pytest.param((GEN, INFER, call(kind="eval")), {}, "job.calls.x.kind", "unknown value 'eval'", id="kind"),
    pytest.param((GEN, INFER, call(kind="external")), {}, "job.calls.x.role", "has no role", id="external"),
    pytest.param((GEN, INFER, call(factor=Fraction(0))), {}, "job.calls.x.factor", "above 0", id="factor"),
    pytest.param((GEN, INFER, call(mini_batches=2)), {}, "job.calls.x.mini_batches", "training calls", id="minis"),
    pytest.param(
        (*CALLS, call(kind="train", role="actor")), {}, "job.calls.x", "is trained by train already", id="two trains"
    ),
    pytest.param((GEN,), {}, "job.roles.ref", "no call uses it", id="unused role"),
    pytest.param(
        CALLS, {"roles": (ACTOR, Role(name="ref", like="ref"))}, "job.roles.ref.like", "is the role itself", id="like"
    ),
    pytest.param((), {}, "job.calls", "1 to 32 entries; got 0", id="empty"),
    pytest.param(CALLS, {"prefetch": 99}, "job.prefetch", "between 0 and 64", id="prefetch"),
    pytest.param(
        CALLS, {"copies": (RoleCopy(source="ref", target="actor"),)}, "job.copies.source", "never trained", id="copy"
    ),
    pytest.param((GEN, INFER, call(latency_s=9.0)), {}, "job.calls.x.latency_s", "9.0 changes nothing", id="latency"),
    pytest.param((GEN, INFER, call(concurrency=4)), {}, "job.calls.x.concurrency", "4 changes nothing", id="at once"),
    pytest.param(
        (*CALLS, call(kind="external", role="", concurrency=4)),
        {},
        "job.calls.x.concurrency",
        "latency_s is 0",
        id="0 s",
    ),
    pytest.param(
        (*CALLS, call(kind="external", role="", shared=0.5)), {}, "job.calls.x.shared", "0.5 changes", id="shared"
    ),
    pytest.param((GEN, INFER, call(factor=Fraction(2), group=2)), {}, "job.calls.x.group", "2 changes", id="group"),
    pytest.param((replace(GEN, span="prompt"), INFER, TRAIN), {}, "job.calls.gen.span", "prompt changes", id="span"),
    pytest.param(
        (replace(GEN, factor=Fraction(2), group=3), INFER, TRAIN),
        {},
        "job.calls.gen.group",
        "has factor 2",
        id="groups",
    ),
    pytest.param(
        CALLS, {"roles": (ACTOR, replace(REF, task="lora"))}, "job.roles.ref.task", "no call trains ref", id="frozen"
    ),
    pytest.param(
        CALLS, {"roles": (replace(ACTOR, stays=True), REF)}, "job.roles.actor.stays", "actor is trained", id="stays"
    ),
    pytest.param(CALLS, {"prefetch": 2}, "job.prefetch", "2 changes nothing", id="nothing ahead"),
    pytest.param(
        CALLS,
        {"copies": (RoleCopy(source="actor", target="ref"),) * 3},
        "job.copies",
        "actor -> ref is there 3 times",
        id="copies",
    ),
    pytest.param(
        CALLS, {"copies": (RoleCopy(source="actor", target="rf"),)}, "job.copies.target", "unknown role", id="copy to"
    ),
]


@pytest.mark.parametrize(("calls", "rest", "field", "words"), REFUSED)
def test_what_is_no_graph_is_refused(calls: tuple[Call, ...], rest: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        flow(*calls, **rest)
    assert caught.value.field == field
    assert words in caught.value.problem


def test_a_cycle_is_named_in_the_direction_of_the_data() -> None:
    first = call(name="a", inputs=("k3",), outputs=("k1",))
    second = call(name="b", inputs=("k1",), outputs=("k2",))
    third = call(name="c", inputs=("k2",), outputs=("k3",))
    with pytest.raises(SpecError) as caught:
        flow(GEN, INFER, first, second, third)
    assert caught.value.problem in ("form a cycle: a -> b -> c -> a", "form a cycle: b -> c -> a -> b")


def test_a_value_head_cannot_generate() -> None:
    with pytest.raises(SpecError, match="value head and cannot generate"):
        flow(GEN, roles=(Role(name="actor", head="value"),))


def test_hints_offer_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="did you mean 'text'\\? or add it to dataset"):
        flow(GEN, INFER, call(inputs=("txt",)))


def test_order_puts_producers_first_whatever_the_order_given() -> None:
    assert flow(TRAIN, INFER, GEN).order == ("gen", "infer", "train")
    assert flow(*CALLS).ancestors("train") == {"gen", "infer"}
    assert flow(*CALLS).children("gen") == ("infer", "train")


def test_sequences_follow_factor_and_mini_batches() -> None:
    grouped = Call(name="t", kind="train", role="actor", inputs=("text",), factor=Fraction(3, 2), mini_batches=4)
    assert grouped.sequences(8) == 12
    with pytest.raises(SpecError, match=r"batch: 7 items times 3/2 sequences of t is no whole number.*example 8"):
        grouped.sequences(7)
    pairs = replace(grouped, kind="generate", factor=Fraction(3), group=2, mini_batches=1)
    assert pairs.sequences(4) == 12
    with pytest.raises(SpecError, match=r"batch: 5 items times 3/2 groups of t is no whole number.*example 6"):
        pairs.sequences(5)
    with pytest.raises(SpecError, match=r"must divide the 15 sequences per iteration; got 4. Hint: 3"):
        grouped.sequences(10)


def test_an_external_service_works_in_rounds() -> None:
    service = Call(name="s", kind="external", inputs=("text",), latency_s=2.0, concurrency=100)
    assert service.external_s(100) == 2.0
    assert service.external_s(101) == 4.0


def edges(graph: Dataflow, **mode: Any) -> set[tuple[str, str, int]]:
    return {(edge.source, edge.target, edge.distance) for edge in iteration_edges(graph, **mode)}


def test_versions_join_iterations_of_ppo() -> None:
    ppo = build_preset("ppo")
    assert edges(ppo) == {
        ("actor_train", "actor_gen", 1),
        ("critic_train", "critic_inf", 1),
        ("ref_inf", "ref_inf", 1),
        ("reward_inf", "reward_inf", 1),
    }
    assert edges(ppo, dependency="barrier") == {("actor_train", "actor_gen", 1), ("critic_train", "actor_gen", 1)}


def test_staleness_lets_generation_lag_and_nothing_else() -> None:
    found = edges(build_preset("ppo"), dependency="stale", staleness=2)
    assert ("actor_train", "actor_gen", 3) in found
    assert ("actor_gen", "actor_gen", 1) in found
    assert ("critic_train", "critic_inf", 1) in found
    assert edges(build_preset("ppo"), dependency="stale") == edges(build_preset("ppo"))


def test_a_frozen_teacher_runs_ahead_as_far_as_allowed() -> None:
    assert ("student_train", "teacher_inf", 4) in edges(build_preset("distill", {"prefetch": 3}))


def test_a_copied_reference_waits_for_the_policy() -> None:
    assert ("actor_train", "ref_inf", 1) in edges(build_preset("ppo-ema"))
    rare = build_preset("mrdpo", {"copy_every": 1000})
    assert ("actor_train", "ref_inf", 1) not in edges(rare)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ({"dependency": "vresion"}, "unknown mode"),
        ({"dependency": "stale", "staleness": 65}, "between 0 and 64"),
        ({"staleness": 1}, "allows none"),
    ],
)
def test_modes_are_checked(mode: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        iteration_edges(build_preset("ppo"), **mode)


MINE = """
name: judged
roles:
  actor: {model: llama-2-7b}
  judge: {model: {base: llama-2-7b}, head: value, stays: true}
calls:
  gen: {role: actor, kind: generate, inputs: [prompts], outputs: [text], factor: 1.5}
  check: {kind: external, inputs: [text], outputs: [passed], factor: 1.5, latency_s: 0.5, concurrency: 64}
  judge_inf: {role: judge, kind: inference, inputs: [text, passed], outputs: [scores]}
  train: {role: actor, kind: train, inputs: [text, scores], mini_batches: 2}
"""


def test_a_file_describes_a_graph_and_its_models(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    described = load_graph(path)
    assert described.graph.order == ("gen", "check", "judge_inf", "train")
    assert described.models == {"actor": "llama-2-7b", "judge": {"base": "llama-2-7b"}}
    assert described.graph.call("gen").sequences(64) == 96
    assert described.graph.role("judge").stays


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"calls": {"gen": {"kind": "generate", "roel": "actor"}}}, "job.calls.gen.roel", "unknown field"),
        ({"calls": {"gen": {"kind": "generated"}}}, "job.calls.gen.kind", "must be '"),
        ({"calls": {}}, "job.calls", "at least 1"),
        ({"roles": {"actor": {"head": "valu"}}}, "job.roles.actor.head", "must be '"),
        ({"calls": {f"c{i}": {"kind": "train", "role": "actor"} for i in range(40)}}, "job.calls", "at most 32"),
    ],
)
def test_files_are_bounded_and_checked(change: dict[str, Any], field: str, words: str) -> None:
    base = {"roles": {"actor": {}}, "calls": {"gen": {"kind": "generate", "role": "actor", "inputs": ["prompts"]}}}
    with pytest.raises(SpecError) as caught:
        graph_from_mapping(base | change)
    assert caught.value.field == field
    assert words in caught.value.problem


def test_an_unknown_key_is_looked_for_where_it_stands() -> None:
    base = {"roles": {"actor": {}}, "calls": {"gen": {"kind": "generate", "roel": "actor", "inputs": ["prompts"]}}}
    with pytest.raises(SpecError) as caught:
        graph_from_mapping(base)
    assert caught.value.hint == "did you mean 'role'?"
    right = base | {"calls": {"gen": {"kind": "generate", "role": "actor", "inputs": ["prompts"]}}}
    with pytest.raises(SpecError) as caught:
        graph_from_mapping(right | {"copies": [{"source": "actor", "target": "actor", "evry": 2}]})
    assert (caught.value.field, caught.value.hint) == ("job.copies.0.evry", "did you mean 'every'?")


def test_a_file_that_holds_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(SpecError, match="must hold a mapping"):
        load_graph(path)
