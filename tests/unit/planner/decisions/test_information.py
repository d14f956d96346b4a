"""What knowing something is worth: nothing where it decides nothing, the whole regret where it decides all."""

import json
from functools import cache
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

import planner
from costmodels.plan import FloatArray
from planner.answer.memory_law import MemoryLaw
from planner.decisions.belief import Belief
from planner.decisions.document import sensitivity_document
from planner.decisions.information import OWN, difference_indices, information
from planner.decisions.parameters import Parameter
from planner.decisions.responses import Responses
from planner.decisions.results import SensitivityResult
from planner.decisions.scenarios import draw
from planner.decisions.schema import sensitivity_schema
from profiles.errors import SpecError
from profiles.stack import StackSpec
from profiles.stacks import load_stacks

STACK = load_stacks()["megatron-core"]


def belief(
    powers: dict[str, list[float]],
    base_s: list[float],
    *,
    own_std: float = 0.0,
    memory_log: float = -5.0,
    memory_std: float = 1e-6,
) -> Belief:
    """Plans whose step times are products of powers of the stack's parameters, all of spread 0.2."""
    exponents = {name: np.array(values) for name, values in powers.items()}

    def price(stack: StackSpec) -> FloatArray:
        time_s = np.array(base_s)
        for name, power in exponents.items():
            time_s = time_s * (getattr(stack, name) / getattr(STACK, name)) ** power
        return time_s

    responses = Responses.of(price, STACK, dict.fromkeys(powers, 0.2))
    kinds = {"gemm_time_scale": "kernels.gemm"}
    return Belief(
        price=price,
        parameters=tuple(
            Parameter(name=kinds.get(name, f"stack.{name}"), along=name, std=0.2, measured_by="") for name in powers
        ),
        field_of=np.arange(len(powers)),
        responses=responses,
        level_std=0.1,
        level_reach=np.ones(len(base_s)),
        own_std=np.full(len(base_s), own_std),
        scales=np.ones(1),
        kin=np.eye(len(base_s)),
        memory_log=np.full(len(base_s), memory_log),
        memory=MemoryLaw(shared_std=memory_std, far_std=memory_std, own_std=1e-6),
    )


def test_what_moves_all_plans_alike_is_worth_nothing() -> None:
    found = belief({"gemm_time_scale": [1.0, 1.0], "memory_time_scale": [0.0, 0.5]}, [1.0, 1.2])
    result = information(found, draw(found, seed=0), oom_penalty=0.0)
    assert result.choice == 0
    assert [result.hardware, result.parameters[0]] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert result.stack == pytest.approx(result.parameters[1], rel=0.2)  # by draws here, by quantiles there
    assert result.parameters[1] > 0.001
    assert result.memory_share == pytest.approx(0.0, abs=1e-12)


def test_knowing_the_only_unknown_is_knowing_everything() -> None:
    # Two plans of equal price; the logarithm of their ratio has a standard deviation of 0.2. Whoever knows it gains
    # E max(X, Y) - max(E X, E Y) of two lognormal times: here 1 and exp(0.2 z), whose mean is exp(0.02).
    found = belief({"memory_time_scale": [0.0, 1.0]}, [1.0, 1.0])
    found = Belief(**{name: getattr(found, name) for name in Belief.__dataclass_fields__} | {"level_std": 0.0})
    result = information(found, draw(found, seed=0, draws=40_000), oom_penalty=0.0)
    z = np.random.default_rng(9).standard_normal(400_000)
    expected = 1 - np.minimum(1.0, np.exp(0.2 * z)).mean()
    assert result.parameters[0] == pytest.approx(expected, rel=0.03)
    assert result.perfect == pytest.approx(result.parameters[0], rel=0.02)


def test_only_trials_tell_what_is_a_plans_own() -> None:
    found = belief({"memory_time_scale": [0.0, 0.01]}, [1.0, 1.0], own_std=0.1)
    result = information(found, draw(found, seed=0), oom_penalty=0.0)
    assert result.perfect > 0.03
    assert result.parameters[0] < 0.002


def test_memory_is_worth_knowing_where_the_fast_plan_may_die() -> None:
    found = belief({"memory_time_scale": [0.1, 0.1]}, [1.0, 1.2], memory_log=-0.05, memory_std=0.1)
    found = Belief(
        **{name: getattr(found, name) for name in Belief.__dataclass_fields__} | {"memory_log": np.array([-0.05, -5.0])}
    )
    result = information(found, draw(found, seed=0), oom_penalty=0.1)
    risk = 0.3085  # of a normal variable to exceed half a standard deviation
    expected_s = (1 - risk) + risk * 1.1 * 1.2  # dying costs the fallback and the penalty
    assert result.step_time_s == pytest.approx(expected_s, rel=0.02)
    assert result.memory_share == pytest.approx(1 - ((1 - risk) + risk * 1.2) / expected_s, rel=0.05)


def test_indices_of_a_difference_are_shares_of_its_variance() -> None:
    found = belief(
        {"gemm_time_scale": [1.0, 1.0], "memory_time_scale": [0.3, 0.0], "collective_time_scale": [0.0, 0.4]},
        [1.0, 1.1],
        own_std=0.05,
    )
    indices = difference_indices(found, 0, 1, seed=0)
    variance = np.array([0.0, 0.06**2, 0.08**2, 2 * 0.05**2])
    assert indices.names[-1] == OWN
    assert indices.std == pytest.approx(np.sqrt(variance.sum()), rel=0.03)
    assert indices.total == pytest.approx(variance / variance.sum(), abs=0.03)
    assert indices.first == pytest.approx(variance / variance.sum(), abs=0.03)
    assert indices.faster == pytest.approx(0.77, abs=0.02)  # log 1.1 over a spread of 0.127


def test_equal_plans_have_no_difference_to_explain() -> None:
    found = belief({"gemm_time_scale": [1.0, 1.0]}, [1.0, 1.0])
    indices = difference_indices(found, 0, 1, seed=0)
    assert (indices.std, indices.faster) == (pytest.approx(0.0, abs=1e-12), 0.5)
    assert indices.total.tolist() == [0.0, 0.0]


JOB: dict[str, Any] = {"sequence_length": 4096, "global_batch_size": 512}


@cache
def answer() -> SensitivityResult:
    return planner.sensitivity("llama-3-70b", "4x8xH100", JOB | {"train_tokens": 1e12}, rivals=2)


def test_an_answer_lists_the_most_worth_first() -> None:
    result = answer()
    worth = [item.regret for item in result.worth]
    assert worth == sorted(worth, reverse=True)
    assert 0 < worth[0] < result.perfect
    assert max(result.hardware, result.stack) <= result.perfect
    assert result.hardware >= max(item.regret for item in result.worth if item.kind == "hardware") - 0.002
    assert {"memory", "links.scale_out", "kernels.gemm"} <= {item.name for item in result.worth}
    assert result.worth[0].device_hours is not None
    assert result.worth[0].device_hours > 0
    assert [len(rival.deciders) > 0 for rival in result.rivals] == [True, True]
    assert all(0 < rival.faster_probability < 0.9 for rival in result.rivals)  # two of the three are within a percent
    # What scales every plan alike decides little: matrix products take most of the time, and of the difference less.
    gemm = [item.total for rival in result.rivals for item in rival.deciders if item.name == "kernels.gemm"]
    assert max(gemm, default=0.0) < 0.1


def test_documents_match_their_schema() -> None:
    nothing = planner.sensitivity("llama-3-70b", "8xA100", JOB)
    assert nothing.choice is None
    for result in (answer(), nothing):
        document = sensitivity_document(result)
        jsonschema_rs.validate(sensitivity_schema(), document)
        assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_wrong_numbers_of_rivals_are_named() -> None:
    with pytest.raises(SpecError, match="rivals: must be a whole number from 1 to 20; got 0"):
        planner.sensitivity("llama-3-70b", "4x8xH100", JOB, rivals=0)


def test_the_command_prints_tables_and_documents(run: Any) -> None:
    ask = ("sensitivity", "--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--seq", "2048", "--global-batch", "64")
    code, out, _ = run(*ask, "--rivals", "1")
    assert code == 0
    assert [words for words in ("Knowing everything", "measured by", "against tp", "Sobol'") if words not in out] == []
    code, out, _ = run(*ask, "--json", "--seed", "4")
    document = json.loads(out)
    assert (code, document["kind"], document["grounds"]["seed"]) == (0, "sensitivity", 4)
    code, out, _ = run("sensitivity", "--model", "llama-3-70b", "--gpus", "8xA100")
    assert code == 3
    assert "Nothing fits" in out


def test_one_plan_has_no_rival(run: Any) -> None:
    fixed = ("--tp", "2", "--pp", "1", "--dp", "4", "--zero", "1", "--micro-batch", "1", "--recompute", "none")
    code, out, _ = run("sensitivity", "--model", "llama-2-7b", "--gpus", "8xA100-80GB", *fixed)
    assert code == 0
    assert "Run it: knowing everything beforehand would save 0.0 %" in out
    assert "against" not in out
