"""Options that would do nothing, or contradict each other, on the command line."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

MODEL = ("--model", "llama-2-7b", "--gpus", "8xH100")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--no-fp32-unquantised",), "job.fp32_unquantised: is given, but pretrain quantises no weights. Hint: --task"),
        (("--task", "lora", "--fp32-unquantised"), "job.fp32_unquantised: is given, but lora quantises no weights"),
        (("--linear-loss", "--no-fused-loss"), "job.fused_cross_entropy: is off, but a loss that takes the output"),
    ],
)
def test_options_that_do_nothing_or_contradict_are_refused(run: Any, options: Sequence[str], error: str) -> None:
    code, _, told = run("estimate", "--model", "llama-2-7b", "--gpus", "8xA100-80GB", *options)
    assert code == 2
    assert error in " ".join(told.split())


@pytest.mark.parametrize("command", [("serving", "--generate", "8"), ("plan", "--job", "ppo")])
@pytest.mark.parametrize("words", ["lognormal:", "lognormal:mean=8", "5.5", ""])
def test_prompts_that_are_no_number_are_refused_in_the_words_of_the_library(
    run: Any, command: Sequence[str], words: str
) -> None:
    code, _, told = run(*command, "--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--prompt", words)
    hint = "one number, as 1024; only generate takes a distribution"
    assert (code, told) == (2, f"error: prompt: must be a number of tokens; got {words!r}. Hint: {hint}\n")


def test_programs_are_told_what_is_wrong_as_the_service_tells_it(run: Any) -> None:
    ask = ("plan", "--model", "llama-2-7b", "--gpus", "8xH10O")
    code, out, told = run(*ask, "--json")
    problem, hint = "unknown name 'H10O'", "did you mean 'H100' or 'H20' or 'A10'?"
    assert code == 2
    assert json.loads(out) == {"errors": [{"field": "cluster.device", "problem": problem, "hint": hint}]}
    assert told == f"error: cluster.device: {problem}. Hint: {hint}\n"
    assert run(*ask) == (2, "", told)


@pytest.mark.parametrize(
    ("options", "field", "problem", "hint"),
    [
        (("--seq", "4k"), "--seq", "must be a whole number; got '4k'", "--seq 4096"),
        (("--seq", "1e3"), "--seq", "must be a whole number; got '1e3'", "--seq 1000"),
        (("--tp", "x"), "--tp", "must be a whole number; got 'x'", "--tp 8, for example"),
        (("--global-batch", "1.5"), "--global-batch", "must be a whole number; got '1.5'", "--global-batch 1 or 2"),
        (("--tp", "0.5"), "--tp", "must be a whole number; got '0.5'", "--tp 1"),
        (("--zero", "3.5"), "--zero", "must be a whole number; got '3.5'", "--zero 3, for example"),
        (
            ("--micro-batch", "-0.5"),
            "--micro-batch",
            "must be a whole number; got '-0.5'",
            "--micro-batch 8, for example",
        ),
        (("--global-batch", "1k"), "--global-batch", "must be a whole number; got '1k'", "--global-batch 1000"),
        (("--global-batch", "1,024"), "--global-batch", "must be a whole number; got '1,024'", "--global-batch 1024"),
        (("--top", "0.5k"), "--top", "must be a whole number; got '0.5k'", "--top 500"),
        (("--top", "0.5Ki"), "--top", "must be a whole number; got '0.5Ki'", "--top 512"),
        (("--seq", "50%"), "--seq", "must be a whole number; got '50%'", "--seq 4096, for example"),
        (("--seq", "4kb"), "--seq", "must be a whole number; got '4kb'", "--seq 4096, for example"),
        (("--seq", "inf"), "--seq", "must be a whole number; got 'inf'", "--seq 4096, for example"),
        (("--max-oom-risk", "5%"), "--max-oom-risk", "must be a number; got '5%'", "--max-oom-risk 0.05"),
        (
            ("--price-per-gpu-hour", "$2"),
            "--price-per-gpu-hour",
            "must be a number; got '$2'",
            "--price-per-gpu-hour 2",
        ),
        (("--seq",), "--seq", "needs a value", "--seq VALUE"),
        (("--seq", "--tp", "8"), "--seq", "needs a value; got the option '--tp'", "--seq VALUE"),
        (("--sq", "4096"), "--sq", "unknown option", "did you mean --seq or --set or --sp?"),
        (("more",), "command", "got unexpected extra argument(s) (more)", "planner plan -h lists what there is"),
    ],
)
def test_options_of_another_type_are_refused_by_value_with_the_fix(
    run: Any, options: Sequence[str], field: str, problem: str, hint: str
) -> None:
    ask = ("plan", "--model", "llama-2-7b", "--gpus", "8xH100")
    assert run(*ask, *options)[0] == 2
    code, out, told = run(*ask, "--json", *options)
    (error,) = json.loads(out)["errors"]
    assert (code, error["field"], error["problem"]) == (2, field, problem)
    assert error["hint"] == hint
    assert told == f"error: {field}: {problem}. Hint: {error['hint']}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--model", "13b"), "--gpus: is required. Hint: 8xA100, 2x8xH100-80GB, 72xGB200, or a YAML file"),
        (("price", "--device", "H100"), "FILE: is required. Hint: MLIR text"),
        (("serve", "--model", "13b"), "--model: unknown option. Hint: planner serving takes it"),
        (("serve", "--modle", "13b"), "--modle: unknown option. Hint: planner serve -h lists them"),
        (("plam",), "command: no such command 'plam'. Hint: did you mean 'plan', 'replan'?"),
        (("plan", "--gpus", "-m", "13b"), "--gpus: needs a value; got the option '-m'. Hint: --gpus VALUE"),
        (
            ("models", "llama", "qwen"),
            "command: got unexpected extra argument(s) (qwen). Hint: 1 argument at most: planner models",
        ),
        (("serve", "--port", "0"), "--port: must be at least 1; got '0'. Hint: --port 1"),
    ],
)
def test_commands_that_lack_something_are_refused_in_one_line(run: Any, arguments: Sequence[str], message: str) -> None:
    code, out, told = run(*arguments)
    assert (code, out, told.count("\n")) == (2, "", 1)
    assert told.startswith(f"error: {message}")


def test_an_option_without_its_value_does_not_swallow_that_answers_are_documents(run: Any) -> None:
    code, out, told = run("plan", "--model", "13b", "--gpus", "--json")
    problem = "needs a value; got the option '--json'"
    assert (code, told) == (2, f"error: --gpus: {problem}. Hint: --gpus VALUE\n")
    assert json.loads(out) == {"errors": [{"field": "--gpus", "problem": problem, "hint": "--gpus VALUE"}]}


@pytest.mark.parametrize("tokens", ["4Mi", "4 Mi", "4096Ki", "4194304"])
def test_batches_in_tokens_are_said_as_answers_say_them(run: Any, tokens: str) -> None:
    ask = ("estimate", "--model", "llama-2-7b", "--gpus", "8xH100", "--batch-tokens")
    code, out, _ = run(*ask, tokens, "--json")
    assert code == 0
    assert json.loads(out)["request"]["job"]["global_batch_size"] == 1024


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("sizing", ("--days", "2,5"), "--days: must be a number; got '2,5'. Hint: --days 2.5"),
        ("sizing", ("--days", "soon"), "--days: must be a number; got 'soon'. Hint: --days 30, for example"),
        (
            "serving",
            ("--prompt", "8", "--generate", "8", "--percentile", "99%"),
            "--percentile: must be a number; got '99%'. Hint: --percentile 99",
        ),
        (
            "estimate",
            ("--reserve-gib", "-$2"),
            "--reserve-gib: must be a number; got '-$2'. Hint: --reserve-gib 2, for",
        ),
    ],
)
def test_numbers_are_suggested_that_the_option_takes(
    run: Any, command: str, options: Sequence[str], message: str
) -> None:
    code, _, told = run(command, *MODEL, *options)
    assert code == 2
    assert told.startswith(f"error: {message}")


def test_thousands_of_tokens_are_decimal_as_in_hints(run: Any) -> None:
    code, out, _ = run("estimate", *MODEL, "--seq", "1000", "--batch-tokens", "8k", "--json")
    assert code == 0
    assert json.loads(out)["request"]["job"]["global_batch_size"] == 8


def test_a_batch_of_no_tokens_is_told_how_batches_are_said(run: Any) -> None:
    _, _, told = run("plan", "--model", "llama-2-7b", "--gpus", "8xH100", "--batch-tokens", "0")
    assert (
        told
        == "error: job.global_batch_tokens: must be a number of tokens; got '0'. Hint: for example 4M, 4Mi or 4194304\n"
    )


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--seq", "0"), "--seq 1"),
        (("--tp", "8", "--dp", "8"), "--tp 1"),
        (("--tp", "3"), "--tp 1, 2, 4 or 8"),
        (("--zero", "7"), "--zero 3"),
        (("--top", "0"), "--top 10, for example"),
        (("--reserve-gib", "900"), "a tenth would be 8 GiB"),
    ],
)
def test_hints_name_the_option_whose_value_they_are(run: Any, options: Sequence[str], hint: str) -> None:
    code, _, told = run("plan", "--model", "llama-2-7b", "--gpus", "8xH100", *options)
    assert (code, told.partition(". Hint: ")[2]) == (2, f"{hint}\n")


@pytest.mark.parametrize(("command", "more"), [("estimate", ()), ("serving", ("--prompt", "8", "--generate", "8"))])
@pytest.mark.parametrize("given", ["0", "-1", "2000000"])
def test_degrees_beyond_their_bounds_are_refused_alike_by_every_command(
    run: Any, command: str, more: Sequence[str], given: str
) -> None:
    _, _, told = run(command, *MODEL, *more, "--tp", given)
    nearest = "1048576" if int(given) > 1 else "1"
    problem = f"must be between 1 and 1048576; got {given}"
    assert told == f"error: plan.tensor_parallel: {problem}. Hint: --tp {nearest}\n"


def test_replicas_are_refused_by_the_name_of_their_option(run: Any) -> None:
    _, _, told = run("serving", *MODEL, "--prompt", "8", "--generate", "8", "--replicas", "0")
    assert told == "error: plan.replicas: must be between 1 and 1048576; got 0. Hint: --replicas 1\n"


@pytest.mark.parametrize(
    ("arguments", "field", "hint"),
    [
        (("plan", "--job", "missing.yaml", "--gpus", "8xH100"), "job, missing.yaml: cannot be read", ""),
        (("replan", *MODEL, "--onto", "missing.yaml"), "--onto, missing.yaml: cannot be read", ""),
        (("plan", *MODEL, "--framework", "vllm"), "framework", "vllm serves models, and trains none: planner serving"),
        (("export", *MODEL, "--format", "fsdp"), "format", "torchtitan or accelerate"),
        (("export", *MODEL, "--format", "llama_factory"), "format", "llama-factory"),
        (
            ("export", *MODEL, "--format", "ms-swift"),
            "format",
            "accelerate or deepspeed, whose settings it takes; docs/fine-tuning.md has its own",
        ),
        (
            ("serving", *MODEL, "--prompt", "8", "--generate", "8", "--speculate", "egale3"),
            "speculate: is neither a method nor a model: unknown name 'egale3'",
            "one of ",
        ),
    ],
)
def test_names_from_elsewhere_are_told_where_they_belong(
    run: Any, arguments: Sequence[str], field: str, hint: str
) -> None:
    code, _, told = run(*arguments)
    assert code == 2
    assert told.startswith(f"error: {field}")
    assert f"Hint: {hint}" in told or not hint


@pytest.mark.parametrize(
    ("options", "option", "earlier", "later"),
    [
        (("--gpus", "8xA100"), "--gpus", "'8xH100'", "'8xA100'"),
        (("-g8xA100",), "--gpus", "'8xH100'", "'8xA100'"),
        (("--seq=2048", "--seq", "4096"), "--seq", "'2048'", "'4096'"),
        (("--sp", "--no-sp"), "--sp", "'--sp'", "'--no-sp'"),
    ],
)
def test_an_option_with_two_values_is_refused(
    run: Any, options: Sequence[str], option: str, earlier: str, later: str
) -> None:
    code, _, told = run("estimate", *MODEL, *options)
    words = f"error: {option}: is given as {earlier} and as {later}. Hint: leave one of them out\n"
    assert (code, told) == (2, words)


def test_an_option_may_be_repeated_with_its_value_and_one_that_takes_several_with_others(run: Any) -> None:
    small = ("--seq", "512", "--global-batch", "8")
    assert run("estimate", *MODEL, "--gpus", "8xH100", *small, "--json", "--json", "-o", "/dev/null")[0] == 0
    workflow = ("plan", "--job", "dpo", "--model", "actor=llama-3.2-1b", "--model", "ref=llama-3.2-1b")
    assert "is given as" not in run(*workflow, "--gpus", "2xH100", "--effort", "x")[2]


@pytest.mark.parametrize(
    ("kinds", "field", "problem"),
    [
        (",,,", "--gpus", "names nothing before or after a comma; got ',,,'"),
        ("8xH100,", "--gpus", "names nothing before or after a comma; got '8xH100,'"),
        ("8xH100,8xH10O", "--gpus, 8xH10O, device", "unknown name 'H10O'"),
        ("8xH100,8xH100@x", "--gpus, 8xH100@x", "cannot read the price in '8xH100@x'"),
    ],
)
def test_of_several_kinds_of_machines_the_one_that_is_wrong_is_named(
    run: Any, kinds: str, field: str, problem: str
) -> None:
    code, out, _ = run("sizing", "--model", "llama-2-7b", "--gpus", kinds, "--tokens", "1T", "--json")
    (error,) = json.loads(out)["errors"]
    assert (code, error["field"], error["problem"]) == (2, field, problem)


@pytest.mark.parametrize("host", ["", " "])
def test_the_service_listens_on_no_address_that_is_empty(run: Any, host: str) -> None:
    assert run("serve", "--host", host) == (
        2,
        "",
        f"error: --host: must be an address; got {host!r}. Hint: --host 127.0.0.1\n",
    )
