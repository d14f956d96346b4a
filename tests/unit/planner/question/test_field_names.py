"""Names of fields that are said otherwise elsewhere: one table for hints of the library, command line and service."""

import pytest
from typer.main import get_command

import planner
from planner.cli.app import app
from planner.cli.hints import in_options, worded
from planner.question.field_names import OPTION_FIELDS
from profiles.errors import SpecError
from service.meant import meant_field

MODEL, CLUSTER = "llama-3.2-1b", "8xH100"


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"plan": {"tp": 2}}, "give what is fixed as pins={'tp': 8}"),
        ({"pin": {"tp": 2}}, "give what is fixed as pins={'tp': 8}"),
        ({"tp": 2}, "a field of pins: pins={'tp': ...}"),
        ({"micro_batches": 2}, "a field of pins: pins={'num_microbatches': ...}"),
        ({"sequence_length": 2}, "a field of job: job={'sequence_length': ...}"),
        ({"seq": 2}, "a field of job: job={'sequence_length': ...}"),
        ({"gpus": CLUSTER}, "did you mean 'cluster'?"),
        ({"price_per_gpu_hour": 2}, "did you mean 'price_per_device_hour_usd'?"),
        ({"framwork": "fsdp"}, "did you mean 'framework'?"),
    ],
)
def test_an_unknown_keyword_is_told_where_it_belongs(settings: dict[str, object], hint: str) -> None:
    name = next(iter(settings))
    with pytest.raises(SpecError) as caught:
        planner.plan(MODEL, CLUSTER, **settings)  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.hint) == (name, hint)


def test_what_is_fixed_has_the_keyword_of_the_call():
    for call in (planner.plan, planner.sizing, planner.portfolio, planner.search):
        with pytest.raises(SpecError, match=r"Hint: .*pins=\{"):
            call(MODEL, CLUSTER, plan={"tp": 2})
    with pytest.raises(SpecError, match=r"Hint: .*plan=\{"):
        planner.estimate(MODEL, CLUSTER, pins={"tp": 2})
    with pytest.raises(SpecError, match=r"Hint: .*plan=\{"):
        planner.replan(MODEL, CLUSTER, "4xH100", pins={"tp": 2})
    with pytest.raises(SpecError, match=r"Hint: .*plan=\{"):
        planner.export(MODEL, CLUSTER, format="megatron-lm", pins={"tp": 2})


def test_a_mapping_of_a_job_and_a_question_about_serving_know_other_names():
    with pytest.raises(SpecError, match="did you mean 'sequence_length'"):
        planner.plan(MODEL, CLUSTER, {"seq": 2048})
    with pytest.raises(SpecError, match="did you mean 'prompt'"):
        planner.serving(MODEL, CLUSTER, input_tokens=8, generate=8)


def test_the_table_is_of_options_that_there_are():
    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    options = {name for command in commands for parameter in command.params for name in parameter.opts}
    missing = {"--" + name.replace("_", "-") for name in OPTION_FIELDS} - options
    assert not missing


@pytest.mark.parametrize(("option", "field"), OPTION_FIELDS.items())
def test_hints_of_the_command_line_and_of_the_service_agree(option: str, field: str) -> None:
    if field != "cluster":  # a word of any text
        assert in_options(f"{field} 8") == f"--{option.replace('_', '-')} 8"
    path = "/serving" if field.endswith("_s") else "/plan"
    assert f"{field}" in meant_field([], option, path=path)


def test_settings_of_workflows_are_called_alike_everywhere():
    """``--set latency_s=1`` has no option of its own: a hint that lists settings names them as they are."""
    error = SpecError("job.foo", "unknown setting", "known: latency_s, lora_rank")
    assert worded(error, workflow=True) == error
