"""The command line: what it prints where, and with which exit code."""

import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from planner import api
from planner.cli import app as cli
from planner.cli.options import given, question
from planner.document_plan import to_document
from planner.schema_types import document_schema
from profiles.errors import InfeasibleError
from tests.command import command_line, instead

BASE = ("--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--seq", "2048", "--global-batch", "64")
JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


class Done:
    """Exit code and output of one call."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    plain = command_line(capsys, monkeypatch)

    def call(*arguments: str) -> Done:
        return Done(*plain(*arguments))

    return call


def test_plan_prints_a_table(run: Any) -> None:
    done = run("plan", *BASE, "--top", "3")
    assert (done.code, done.err) == (0, "")
    assert "llama-2-7b (6.74B parameters) on 8 x A100-SXM-80GB" in done.out
    assert done.out.splitlines()[3].split()[0] == "1"


def test_json_is_the_document_of_the_library(run: Any) -> None:
    done = run("plan", *BASE, "--top", "3", "--json")
    document = json.loads(done.out)
    assert document == json.loads(json.dumps(to_document(api.plan("llama-2-7b", "8xA100-80GB", JOB, top=3))))
    jsonschema_rs.validate(document_schema(), document)


def test_estimate_with_every_option_of_the_issue(run: Any) -> None:
    done = run(
        *("estimate", "--model", "llama-3-70b", "--gpus", "8x8xH100", "--tp", "8", "--pp", "4", "--micro-batch", "1"),
        *("--global-batch", "512", "--seq", "4096", "--recompute", "selective", "--zero", "1", "--json"),
    )
    assert done.code == 0
    (answer,) = json.loads(done.out)["plans"]
    plan = answer["plan"]
    assert (plan["tensor_parallel"], plan["pipeline_parallel"], plan["data_parallel"]) == (8, 4, 2)
    assert (plan["micro_batch_size"], plan["num_microbatches"], plan["zero_stage"]) == (1, 256, 1)
    assert plan["recompute"] == "selective"


OPTIONS: list[tuple[Sequence[str], str, Any]] = [
    (("--cp", "2"), "context_parallel", 2),
    (("--dp", "4"), "data_parallel", 4),
    (("--pp", "2", "--vpp", "2"), "virtual_stages", 2),
    (("--recompute", "block:3"), "recompute_layers", 3),
    (("--micro-batches", "8"), "num_microbatches", 8),
    (("--tp", "2", "--no-sp"), "sequence_parallel", False),
    (("--zero", "1", "--hsdp", "4"), "zero_shard_degree", 4),
    (("--framework", "fsdp", "--pp", "2", "--schedule", "zb-v"), "schedule", "zb-v"),
    (("--framework", "deepspeed", "--cp", "2", "--context-kind", "ulysses"), "context_kind", "ulysses"),
    (("--gpus", "2x8xA100", "--axis-order", "tp_cp_pp_dp"), "axis_order", "tp_cp_pp_dp"),
    (("--pp", "2", "--first-stage-layers", "15"), "first_stage_layers", 15),
    (("--pp", "2", "--last-stage-layers", "15"), "last_stage_layers", 15),
    (("--offload-optimizer",), "offload_optimizer", True),
    (("--framework", "fsdp", "--offload-activations", "--recompute", "full"), "offload_activations", True),
    (("--framework", "deepspeed", "--offload-parameters", "--zero", "3", "--pp", "1"), "offload_parameters", True),
    (("--model", "mixtral-8x7b", "--gpus", "32xH100", "--ep", "4"), "expert_parallel", 4),
    (("--model", "mixtral-8x7b", "--gpus", "32xH100", "--tp", "2", "--etp", "1"), "expert_tensor_parallel", 1),
]


@pytest.mark.parametrize(("options", "field", "value"), OPTIONS, ids=[" ".join(case[0]) for case in OPTIONS])
def test_plan_options_reach_the_plan(run: Any, options: Sequence[str], field: str, value: Any) -> None:
    done = run("estimate", *instead(BASE, options), "--json")
    assert done.code in (0, 3), done.err
    assert json.loads(done.out)["plans"][0]["plan"][field] == value


JOB_OPTIONS: list[tuple[Sequence[str], str, Any]] = [
    (("--task", "full"), "task", "full"),
    (("--precision", "fp16"), "precision", "fp16"),
    (("--optimizer", "sgd"), "optimizer", "sgd"),
    (("--gradient-dtype", "bf16"), "gradient_dtype", "bf16"),
    (("--master-dtype", "none", "--framework", "fsdp"), "master_dtype", "none"),
    (("--state-dtype", "bf16"), "state_dtype", "bf16"),
    (("--attention", "unfused"), "attention", "unfused"),
    (("--attention-library", "flash_3", "--gpus", "8xH100-SXM-80GB"), "attention_library", "flash_3"),
    (("--dropout",), "dropout", True),
    (("--fused-loss",), "fused_cross_entropy", True),
    (("--linear-loss",), "linear_cross_entropy", True),
    (("--task", "full", "--paged-optimizer", "--framework", "fsdp"), "paged_optimizer", True),
    (("--task", "full", "--optimizer-in-backward", "--framework", "fsdp"), "optimizer_in_backward", True),
    (("--task", "QLoRA", "--no-fp32-unquantised"), "fp32_unquantised", False),
    (("--task", "lora", "--frozen-dtype", "fp32"), "frozen_dtype", "fp32"),
    (("--fp8-activation",), "fp8_activation", True),
    (("--precision", "fp8", "--fp8-attention", "--gpus", "8xH100-SXM-80GB"), "fp8_attention", True),
    (("--padding-efficiency", "0.5"), "padding_efficiency", 0.5),
    (("--varied-lengths",), "varied_lengths", True),
    (("--sample-tokens", "128"), "sample_tokens", 128),
    (
        ("--task", "lora", "--lora-rank", "8", "--lora-targets", "q,v"),
        "lora",
        {"rank": 8, "targets": ["q", "v"], "dropout": False},
    ),
    (("--tokens", "1.5T"), "train_tokens", 1.5e12),
    (("--tokens", "300B"), "train_tokens", 3e11),
    (("--tokens", "2e9"), "train_tokens", 2e9),
    (("--batch-tokens", "131072"), "global_batch_size", 64),
]


@pytest.mark.parametrize(("options", "field", "value"), JOB_OPTIONS, ids=[" ".join(case[0]) for case in JOB_OPTIONS])
def test_job_options_reach_the_job(run: Any, options: Sequence[str], field: str, value: Any) -> None:
    done = run("estimate", *instead(BASE, options), "--json")
    assert done.code in (0, 3), done.err
    assert json.loads(done.out)["request"]["job"][field] == value


SEARCH_OPTIONS: list[tuple[Sequence[str], str, Any]] = [
    (("--framework", "fsdp"), "framework", "fsdp"),
    (("--objective", "memory_headroom"), "objective", "memory_headroom"),
    (("--offload",), "offload", True),
    (("--named-modules",), "named_modules", True),
    (("--max-oom-risk", "0.05"), "max_oom_risk", 0.05),
    (("--reserve-gib", "2"), "memory_reserve_bytes", 2 * 2**30),
    (("--price-per-gpu-hour", "2.5", "--price-date", "2026-11"), "price_date", "2026-11"),
    (("--price-per-gpu-hour", "2.5"), "price_per_device_hour_usd", 2.5),
]


@pytest.mark.parametrize(
    ("options", "field", "value"), SEARCH_OPTIONS, ids=[" ".join(case[0]) for case in SEARCH_OPTIONS]
)
def test_search_options_reach_the_request(run: Any, options: Sequence[str], field: str, value: Any) -> None:
    done = run("estimate", *BASE, *options, "--json")
    assert json.loads(done.out)["request"][field] == value


def test_every_option_is_tested_or_reaches_nothing() -> None:
    """Every option of a question appears in a case above, under its own name."""
    import inspect

    told = {word for cases in (OPTIONS, JOB_OPTIONS, SEARCH_OPTIONS) for case in cases for word in case[0]}
    elsewhere = {"--model", "--gpus", "--seq", "--global-batch", "--json", "--output", "--quiet", "--debug", "--fabric"}
    elsewhere |= {"--recompute", "--micro-batch", "--stack-fit"}
    for parameter in inspect.signature(question).parameters.values():
        declared = parameter.annotation.__metadata__[0]
        spoken = {part for name in (declared.default, *declared.param_decls) for part in str(name).split("/")}
        assert spoken & (told | elsewhere), parameter.name


def test_stack_fit(run: Any, tmp_path: Path) -> None:
    card = {"values": {"step_time_scale": 2.0}, "rows": 1, "sources": ["mine.csv"]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"stacks": {"megatron-core": card}}))
    times_s = [
        json.loads(run("estimate", *BASE, "--tp", "2", *fit, "--json").out)["plans"][0]["time"]["step_time_s"]
        for fit in ((), ("--stack-fit", str(path)))
    ]
    assert times_s[1] == pytest.approx(2 * times_s[0])
    missing = run("estimate", *BASE, "--stack-fit", str(tmp_path / "none.json"))
    assert missing.code == 2
    assert "stack_fit: no such file" in missing.err
    other = run("estimate", *BASE, "--framework", "nanotron", "--stack-fit", str(path))
    assert other.code == 2
    assert "stack_fit: says nothing of nanotron, which is what is planned for. Hint: give --framework meg" in other.err


def test_fabric(run: Any) -> None:
    done = run("estimate", *instead(BASE, ("--gpus", "2x8xA100")), "--fabric", "ib-hdr-200", "--json")
    assert json.loads(done.out)["request"]["cluster"]["fabric"] == "ib-hdr-200"


def test_nothing_fits(run: Any) -> None:
    done = run("plan", "--model", "llama-3-70b", "--gpus", "8xA100", "--global-batch", "64")
    assert done.code == 3
    assert "Nothing fits." in done.out
    assert "What would fit:" in done.out
    assert done.err == ""
    asked = run("plan", "--model", "llama-3-70b", "--gpus", "8xA100", "--global-batch", "64", "--json")
    assert asked.code == 3
    assert json.loads(asked.out)["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("plan", *BASE, "--tp", "3"),
            "error: plan.tensor_parallel: must divide num_attention_heads=32; got 3. Hint: ",
        ),
        (("plan", "--model", "lama", "--gpus", "8xA100"), "error: model: unknown name 'lama'. Hint: "),
        (("plan", "--model", "13b", "--gpus", "8xH10O"), "error: cluster.device: unknown name 'H10O'. Hint: "),
        (
            ("plan", *BASE, "--tokens", "many"),
            "error: job.train_tokens: must be a number of tokens; got 'many'. Hint: ",
        ),
        (("plan", *BASE, "--tokens", "-5"), "error: job.train_tokens: must be a number of tokens; got '-5'. Hint: "),
        (("plan", *BASE, "--objective", "speed"), "error: objective: unknown value 'speed'. Hint: "),
        (("plan", *BASE, "--recompute", "some"), "error: plan.recompute: unknown value 'some'. Hint: "),
        (("plan", *BASE, "--output", "/no/such/place.json"), "error: --output: cannot write '/no/such/place.json': "),
        (("plan", "--model", "13b", "--gpus", "missing.yaml"), "error: --gpus, missing.yaml: cannot be read: No such"),
        (
            ("plan", *BASE, "--model", "13b"),
            "error: --model: a single job has one model; got 'llama-2-7b', '13b'. Hint: ",
        ),
        (("plan", *BASE, "--batch", "0"), "error: --batch: says something about a workflow, and none is given"),
        (("plan", *BASE, "--effort", "0"), "error: --effort: says something about a workflow, and none is given"),
        (("plan", *BASE, "--seed", "3"), "error: --seed: has no effect on a ranking; got 3. Hint: add --portfolio 3"),
        (("plan", *BASE, "--trial-steps", "3"), "error: --trial-steps: has no effect on a ranking; got 3. Hint: "),
        (
            ("plan", *BASE, "--portfolio", "2", "--top", "3"),
            "error: --top: has no effect on the trials of --portfolio; got 3. Hint: leave --portfolio out",
        ),
        (("plan", *BASE, "--portfolio", "2", "--pareto"), "error: --pareto: has no effect on the trials"),
        (("gpus", "H10O"), "error: device: unknown name 'H10O'. Hint: "),
        (("validate", "/no/such.csv"), "error: "),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else None,
)
def test_bad_input(run: Any, arguments: Sequence[str], message: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith(message)
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments",
    [("plan",), ("plan", "--model", "13b"), ("plan", *BASE, "--tp", "two"), ("plam",), ("plan", *BASE, "--x")],
)
def test_usage_errors(run: Any, arguments: Sequence[str]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err


def test_bugs_exit_with_one_and_no_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(api, "plan", broken)
    done = run("plan", *BASE)
    assert done.code == 1
    assert done.err == "internal error: ZeroDivisionError: by design. Repeat with --debug for the traceback.\n"
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan", *BASE, "--debug"])


def test_infeasible_errors_exit_with_three(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise InfeasibleError({"out_of_memory": 3})

    monkeypatch.setattr(api, "plan", nothing)
    done = run("plan", *BASE)
    assert (done.code, done.err) == (3, "error: no plan satisfies every limit (out_of_memory: 3)\n")


def test_interruptions_and_closed_pipes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "plan", interrupted)
    assert run("plan", *BASE).code == 130


def test_output_goes_to_a_file_as_well(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = run("plan", *BASE, "--output", str(file), "--quiet")
    assert "legal plans priced" in done.out
    assert "Assumed" not in done.out
    assert json.loads(file.read_text())["kind"] == "plan"


def test_a_cluster_may_be_a_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("device: A100-80GB\nnum_nodes: 2\ngpus_per_node: 8\nfabric: ib-hdr-200\n")
    asked = instead(BASE, ("--gpus", str(file)))
    done = run("estimate", *asked, "--json")
    assert json.loads(done.out)["request"]["cluster"]["num_devices"] == 16
    file.write_text("- 1\n")
    assert run("estimate", *asked).err.startswith(f"error: --gpus, {file}: must hold a mapping")


def test_variants_and_front(run: Any) -> None:
    folded = json.loads(run("plan", *BASE, "--json", "--top", "50").out)
    listed = json.loads(run("plan", *BASE, "--json", "--top", "50", "--variants").out)
    assert [item["plan"] for item in listed["plans"]] != [item["plan"] for item in folded["plans"]]
    fronted, plain = run("plan", *BASE, "--pareto").out, run("plan", *BASE).out
    assert fronted.startswith(plain)
    assert fronted[len(plain) :].split()[:5] == ["step", "memory", "risk", "gpus", "plan"]


def test_models(run: Any) -> None:
    done = run("models")
    assert done.code == 0
    assert "llama-2-13b" in done.out
    assert max(len(line.rstrip()) for line in done.out.splitlines()) <= 100
    document = json.loads(run("models", "llama-3", "--json").out)
    assert all("llama-3" in model["name"] for model in document["models"])
    assert all(model["source"] for model in document["models"])
    meant = json.loads(run("models", "meta-llama/Llama-3.1-8B", "--json").out)
    assert [model["name"] for model in meant["models"]] == ["llama-3.1-8b"]
    unknown = run("models", "lama-9")
    assert unknown.code == 2
    assert "no name contains 'lama-9'. Hint: did you mean" in unknown.err


def test_names_are_whole_where_no_terminal_says_how_wide_it_is(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert "g5.48xlarge" not in run("gpus").out
    monkeypatch.delenv("COLUMNS")
    assert "g5.48xlarge" in run("gpus").out


def test_serve_hands_over_to_uvicorn(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    calls: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda *arguments, **options: calls.append((arguments, options)))
    assert run("serve", "--port", "9000").code == 0
    assert calls == [(("service.app:create_app",), {"factory": True, "host": "127.0.0.1", "port": 9000})]
    assert run("serve", "--port", "0").code == 2


def test_an_address_that_cannot_be_served_is_the_users_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    def stop(*_: Any, **__: Any) -> None:
        raise SystemExit(3)  # what uvicorn exits with; here 3 means that nothing fits

    monkeypatch.setattr(uvicorn, "run", stop)
    done = run("serve", "--host", "nosuch.invalid")
    assert done.code == 2
    assert "cannot listen on nosuch.invalid:8000" in done.err


def test_version_and_help(run: Any) -> None:
    assert run("--version").out.strip().count(".") == 2
    for command in ("plan", "estimate", "models", "gpus", "validate", "serve"):
        assert command in run("--help").out
        assert run(command, "--help").code == 0


def test_help_stays_light() -> None:
    code = (
        "import sys\nfrom planner.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'yaml', 'pydantic', 'scipy', 'fastapi', 'lightgbm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_results_can_be_piped() -> None:
    for options, first in (("--json", "{"), ("", "model")):
        script = f"set -o pipefail; {Path(sys.executable).with_name('planner')} models {options} | head -1"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout.split()[0] == first
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("options", ["", "--json"])
def test_an_answer_that_cannot_be_written_is_no_bug(options: str) -> None:
    script = f"{Path(sys.executable).with_name('planner')} workflows {options} > /dev/full"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: stdout: cannot write the answer: No space left on device\n")


def test_options_given_are_those_with_another_value_than_declared() -> None:
    declared = inspect.signature(cli.plan).parameters
    values = {"top": declared["top"].default, "seed": 3, "pareto": False, "portfolio": None, "oom_penalty": 0.0}
    assert given(values, cli.plan) == {"seed": 3, "oom_penalty": 0.0}
