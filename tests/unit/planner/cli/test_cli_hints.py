"""Hints of the command line name options; prose, quoted names and columns of files stay as they are."""

import json
from pathlib import Path

import pytest

from planner.cli.hints import in_options, worded
from profiles.errors import SpecError
from tests.command import Command


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ("allow_partial", "--allow-partial"),
        ("framework fsdp, deepspeed or huggingface", "--framework fsdp, deepspeed or huggingface"),
        ("sequence_parallel on", "--sp"),
        ("sequence_parallel off, or tp 2", "--no-sp, or --tp 2"),
        ("for example draft_tokens 3", "for example --draft-tokens 3"),
        ("offload_activations off, or framework megatron", "--no-offload-activations, or --framework megatron"),
        ("cp 1, or framework megatron with context_kind ulysses",
         "--cp 1, or --framework megatron with --context-kind ulysses"),
        ("task full, or format accelerate with framework hf-trainer; or allow_partial",
         "--task full, or --format accelerate with --framework hf-trainer; or --allow-partial"),
        ("zero 0, or --format deepspeed", "--zero 0, or --format deepspeed"),
        ("pin actor_train.zero_stage=1", "--pin actor_train.zero_stage=1"),
        ("reward=external", "--set reward=external"),
        ("old_logprobs=true; or allow_partial", "--set old_logprobs=true; or --allow-partial"),
        ("leave it out or add kl=true", "leave it out or add --set kl=true"),
        ("group_size=2", "--set group_size=2"),
        ("mini_batches=1, or a batch of 8", "--set mini_batches=1, or a batch of 8"),
        ("16, or a smaller global_batch_size", "16, or a smaller --global-batch"),
        ("leave it or rate_per_s out", "leave it or --rate out"),
        ("leave it out; memory_reserve_bytes leaves memory free", "leave it out; --reserve-gib leaves memory free"),
    ],
)  # fmt: skip
def test_fields_are_options(hint: str, words: str) -> None:
    assert in_options(hint) == words
    assert in_options(words) == words


@pytest.mark.parametrize(
    "hint",
    [
        "leave an unsupported format out",
        "no engine here does",
        "tp x pp x cp must be one of 3",
        "give two of tokens, sequence length and batch",
        "latent attention (kv_lora_rank) needs it",
        "did you mean 'sequence_length'?",
        "for example {'tp': 8}",
        "job.train_tokens, on the command line --tokens 15T",
    ],
)
def test_other_words_stay(hint: str) -> None:
    assert in_options(hint) == hint


def test_columns_of_a_file_are_no_options() -> None:
    error = SpecError("runs.csv:2:lora_rank", "is given, but the task is full", "task lora or qlora")
    assert worded(error) is error


def test_fields_of_a_file_are_no_options(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        "roles: {actor: {model: llama-3.2-1b, task: lora, lora_rnk: 8}}\n"
        "calls: {sft: {role: actor, kind: train, inputs: [prompts]}}\n"
    )
    code, _, told = command("plan", "--job", str(file), "--gpus", "1xH100")
    assert code == 2
    assert told == (
        "error: job.roles.actor.lora_rnk: unknown field. Hint: did you mean 'lora_rank' or 'lora' or 'lora_targets'?\n"
    )
    file.write_text(file.read_text().replace("lora_rnk", "lora_rank").replace("kind", "kynd"))
    _, _, told = command("plan", "--job", str(file), "--gpus", "1xH100")
    assert told == "error: job.calls.sft.kynd: unknown field. Hint: did you mean 'kind'?\n"


def test_the_task_of_a_workflow_is_a_setting(command: Command) -> None:
    error = SpecError("job.lora_rank", "is given, but the task is full", "task lora or qlora")
    assert worded(error).hint == "--task lora or qlora"
    asked = ("plan", "--job", "grpo", "-m", "llama-3.2-1b", "-g", "8xH100", "--framework", "megatron")
    sizes = ("--batch", "64", "--prompt", "256", "--generate", "256", "--set", "task=qlora")
    assert command(*asked, *sizes)[2].endswith("Hint: --set task=lora, or --framework hf-trainer\n")


def test_a_loss_without_logits_is_of_jobs_and_of_workflows(command: Command) -> None:
    asked = ("plan", "--job", "sft", "-m", "llama-3.2-1b", "-g", "1xH100", "--framework", "hf-fsdp", "--linear-loss")
    code, out, _ = command(*asked, "--batch", "8", "--prompt", "256", "--generate", "256", "--json")
    assert code == 0
    assert json.loads(out)["request"]["linear_loss"] is True


def test_people_and_programs_read_options(command: Command) -> None:
    asked = ("export", "--format", "megatron-lm", "-m", "gemma-3-27b", "-g", "8xH100")
    code, _, told = command(*asked)
    assert code == 2
    other = "no other format says all of this plan; --format accelerate or deepspeed plans the model anew"
    assert told.endswith(f"got 4. Hint: {other}; or --allow-partial\n")
    assert json.loads(command(*asked, "--json")[1])["errors"][0]["hint"] == f"{other}; or --allow-partial"


MIXTRAL = ("plan", "--model", "mixtral-8x7b", "--gpus", "8xH100", "--tp", "2")
ENDS = ("plan", "--model", "13b", "--gpus", "8xH100", "--first-stage-layers", "5")
FSDP = ("estimate", "--model", "qwen3-8b", "--gpus", "8xH100", "--framework", "fsdp")
SPLIT = "the sequence length 4097 does not split over cp 1 x tp 2"


@pytest.mark.parametrize(
    ("asked", "told", "followed"),
    [
        ((*MIXTRAL, "--seq", "4097"), f"tp=2, and {SPLIT}. Hint: --seq 4098, or", (*MIXTRAL, "--seq", "4098")),
        ((*MIXTRAL, "--seq", "4097", "--sp"), f"{SPLIT}. Hint: --seq 4098, or", (*MIXTRAL, "--seq", "4098", "--sp")),
        (
            (*FSDP, "--hsdp", "3"),
            "plan.zero_shard_degree: must divide dp x cp = 8; got 3. Hint: --hsdp 1, 2, 4 or 8",
            (*FSDP, "--hsdp", "4"),
        ),
        (
            (*FSDP, "--hsdp", "4", "--zero", "0"),
            "plan.zero_shard_degree: needs zero_stage > 0. Hint: --zero 3, or no shard degree",
            (*FSDP, "--hsdp", "4", "--zero", "3"),
        ),
        (
            ("plan", "--model", "13b", "--gpus", "8xH100", "--top", "1e9"),
            "--top: must be a whole number; got '1e9'. Hint: --top 10, for example",
            ("plan", "--model", "13b", "--gpus", "8xH100", "--top", "10"),
        ),
        (
            (*ENDS, "--zero", "2", "--dp", "1"),
            "needs several pipeline stages; got 1. Hint: --pp 2 or more and --zero 0 or 1, or leave those of the first",
            (*ENDS, "--zero", "1", "--dp", "1", "--pp", "2"),
        ),
    ],
)
def test_hints_are_legal_where_they_are_followed(
    command: Command, asked: tuple[str, ...], told: str, followed: tuple[str, ...]
) -> None:
    code, _, error = command(*asked)
    assert code == 2
    assert told in error
    assert command(*followed)[0] != 2


def test_a_device_beside_groups_is_no_unknown_field(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("device: H100\ngroups:\n- {device: A100, num_nodes: 1}\n")
    code, _, error = command("search", "--model", "7b", "--gpus", str(path))
    words = "cluster.device: excludes groups, each of which has its own. Hint: leave device or groups out"
    assert (code, error) == (2, f"error: {words}\n")
