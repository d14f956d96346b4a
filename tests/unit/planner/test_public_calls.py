"""Public calls in Python refuse what they cannot take by the errors of the package, naming the argument."""

from pathlib import Path
from typing import Any

import pytest

import planner
from profiles.errors import SpecError

JOB: dict[str, Any] = {"sequence_length": 1024, "global_batch_size": 8}
ASKED: dict[str, Any] = {"model": "llama-3.2-1b", "cluster": "2xA100", "job": JOB}


def test_terms_may_be_a_mapping() -> None:
    assert planner.portfolio(**ASKED, count=1, terms={"seed": 1}).trials


@pytest.mark.parametrize(
    ("terms", "message"),
    [(5, "terms: must be a mapping; got 5"), ({"sed": 1}, "terms.sed: unknown field"), ({"seed": "x"}, "seed: must")],
)
def test_other_terms_are_refused(terms: Any, message: str) -> None:
    for call in (planner.portfolio, planner.sensitivity):
        with pytest.raises(SpecError) as error:
            call(**ASKED, terms=terms)
        assert str(error.value).startswith(message)


def test_counts_and_tables_are_named_as_arguments_are() -> None:
    with pytest.raises(SpecError, match=r"^count: must be a whole number from 1"):
        planner.portfolio(**ASKED, count=-1)
    with pytest.raises(SpecError, match=r"^trials: no file or folder 'nope\.csv'"):
        planner.observe(**ASKED, trials="nope.csv")


@pytest.mark.parametrize("questions", [3, "1xA100", {"model": "x"}, None])
def test_a_sweep_takes_a_list(questions: Any) -> None:
    with pytest.raises(SpecError, match=r"^questions: must be a list of mappings"):
        planner.sweep(questions)


@pytest.mark.parametrize("workers", [0, -2, "x", True])
def test_a_sweep_takes_workers(workers: Any) -> None:
    with pytest.raises(SpecError, match=r"^workers: must be a whole number"):
        planner.sweep([ASKED], workers=workers)


def test_a_question_without_a_model_does_not_lose_the_others() -> None:
    good, bad = planner.sweep([ASKED, {"cluster": "1xA100"}], backend="sequential", strategy="enumerate")
    assert not isinstance(good, SpecError)
    assert isinstance(bad, SpecError)
    assert bad.field == "model"


@pytest.mark.parametrize("lora", [{"dropout": "x"}, {"dropout": True}, {"rank": 8}])
def test_adapters_of_a_task_without_them_are_refused(lora: dict[str, Any]) -> None:
    (name,) = lora
    with pytest.raises(SpecError) as error:
        planner.plan(**ASKED | {"job": JOB | {"lora": lora}})
    assert error.value.field == f"job.lora.{name}"


def test_a_folder_is_no_model_and_no_fit(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^model: folder .* holds no config\.json"):
        planner.plan(**ASKED | {"model": str(tmp_path)})
    with pytest.raises(SpecError, match=r"^stack_fit: is a folder"):
        planner.plan(**ASKED, stack_fit=str(tmp_path))
