"""Commands that start a replica: parsed by a shell, they say what the plan says."""

import subprocess
from typing import Any

import pytest

import planner
from planner.deployments.launch import launch_words, most_running
from planner.deployments.results import ServingResult
from planner.render.serving import _broken

MODEL, CLUSTER = "deepseek-v3", "8xH200-SXM-141GB"


def served(gpus: str = CLUSTER, model: str = MODEL, **asked: Any) -> ServingResult:
    weights = {} if "llama" in model else {"weights": "fp8"}
    return planner.serving(model, gpus, **{"prompt": 1000, "generate": 200, **weights, **asked})


def run(result: ServingResult, rank: int = 1, *, setting: str = "") -> list[str]:
    """Arguments that the engine gets from the first plan's command, on the node of that rank."""
    command = " ".join(launch_words(result.plans[0], result))
    name = {"vllm": "vllm", "sglang": "python", "tensorrt-llm": "trtllm-serve"}[result.engine.name]
    script = f"""{name}() {{ for word in "$@"; do echo "<$word>"; done; }}; srun() {{ echo srun "$@"; }}
    cd "$(mktemp -d)"; MODEL='some model' HEAD=10.0.0.1 NODE_RANK={rank} {setting}
    {command}
    [ ! -f options.yaml ] || sed 's/^/file: /' options.yaml"""
    found = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    return [line.strip("<>") for line in found.stdout.splitlines()]


def value(arguments: list[str], option: str) -> str:
    assert arguments.count(option) == 1
    return arguments[arguments.index(option) + 1]


def test_a_dense_replica_of_vllm() -> None:
    result = served("8xH100-SXM-80GB", "llama-3.1-70b", pins={"tp": 4}, tpot_s=0.04, max_model_len=4096)
    plan, arguments = result.plans[0], run(result)
    assert arguments[:2] == ["serve", "some model"]
    assert value(arguments, "--tensor-parallel-size") == "4"
    assert value(arguments, "--max-model-len") == "4096"
    assert int(value(arguments, "--max-num-seqs")) == most_running(plan, result) == round(plan.concurrency)
    assert value(arguments, "--max-num-batched-tokens") == "8192"
    assert value(arguments, "--gpu-memory-utilization") == "0.92"
    assert value(arguments, "--dtype") == "bfloat16"
    assert not {"--quantization", "--data-parallel-size", "--enable-expert-parallel", "--nnodes"} & set(arguments)


@pytest.mark.parametrize(
    ("engine", "option", "within"),
    [("vllm", "--max-num-seqs", True), ("sglang", "--max-running-requests", False)],
)
def test_requests_of_vllm_are_no_more_than_tokens_of_a_step(engine: str, option: str, within: bool) -> None:
    asked: dict[str, Any] = {"engine": engine, "pins": {"tp": 1}, "max_num_batched_tokens": 16}
    result = served("1xH100-SXM-80GB", "llama-3.1-8b", **asked)
    assert (int(value(run(result), option)) <= 16) == within


def test_the_smallest_fix_of_settings_that_contradict_each_other() -> None:
    asked: dict[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 32}
    with pytest.raises(planner.SpecError, match="max_num_batched_tokens 64"):
        served("1xH100-SXM-80GB", "llama-3.1-8b", **asked)
    assert served("1xH100-SXM-80GB", "llama-3.1-8b", engine="sglang", **asked).fits
    assert served("1xH100-SXM-80GB", "llama-3.1-8b", **asked | {"max_num_batched_tokens": 64}).fits


def test_attention_groups_in_the_words_of_each_engine() -> None:
    """vLLM counts tensors of a group, the others all ranks; SGLang's limits are of all groups."""
    pins, asked = {"tp": 2, "ep": 8}, {"concurrency": 64, "kv_cache_dtype": "fp8"}
    vllm = run(served(pins=pins, **asked))
    assert (value(vllm, "--tensor-parallel-size"), value(vllm, "--data-parallel-size")) == ("2", "4")
    assert "--enable-expert-parallel" in vllm
    assert (value(vllm, "--max-num-seqs"), value(vllm, "--kv-cache-dtype")) == ("16", "fp8")
    sglang = run(served(pins=pins, engine="sglang", **asked))
    assert [value(sglang, f"--{name}-size") for name in ("tp", "dp", "ep")] == ["8", "4", "8"]
    assert "--enable-dp-attention" in sglang
    assert value(sglang, "--max-running-requests") == "64"
    assert value(sglang, "--chunked-prefill-size") == str(4 * 8192)
    assert value(sglang, "--kv-cache-dtype") == "fp8_e4m3"
    trtllm = run(served(pins={"tp": 1, "ep": 8}, engine="tensorrt-llm", **asked))
    assert [value(trtllm, f"--{name}_size") for name in ("tp", "ep", "max_batch")] == ["8", "8", "8"]
    assert value(trtllm, "--extra_llm_api_options") == "options.yaml"


@pytest.mark.parametrize(("concurrency", "captured"), [(1, 1), (100, 100), (2000, 512)])
def test_graphs_are_captured_for_as_many_sequences_as_the_plan_runs(concurrency: int, captured: int) -> None:
    """An L40S with SGLang's own has graphs of up to 32 sequences, and TensorRT-LLM none of 100."""
    asked: dict[str, Any] = {"prompt": 20, "generate": 20, "concurrency": concurrency, "pins": {"tp": 1}}
    sglang = run(served("1xL40S", "llama-3.2-1b", engine="sglang", **asked))
    assert value(sglang, "--cuda-graph-max-bs") == str(captured)
    trtllm = run(served("1xL40S", "llama-3.2-1b", engine="tensorrt-llm", **asked))
    graphs = f"file: cuda_graph_config: {{enable_padding: true, max_batch_size: {captured}}}"
    assert (graphs in trtllm) == (captured > 32)
    eager = run(served("1xL40S", "llama-3.2-1b", engine="sglang", eager=True, **asked))
    assert "--cuda-graph-max-bs" not in eager
    assert "--disable-cuda-graph" in eager


def test_the_file_of_tensorrt_llm_has_the_share_too() -> None:
    """Its kv_cache_config replaces that of the command line, share and all."""
    share, option = "free_gpu_memory_fraction: 0.9", "--kv_cache_free_gpu_memory_fraction"
    plain = run(served(pins={"tp": 8, "ep": 8}, engine="tensorrt-llm", concurrency=16))
    assert value(plain, option) == "0.9"
    grouped = run(served(pins={"tp": 1, "ep": 8}, engine="tensorrt-llm", concurrency=16))
    assert grouped[-2:] == ["file: enable_attention_dp: true", f"file: kv_cache_config: {{{share}}}"]
    narrow = run(served(pins={"tp": 8, "ep": 8}, engine="tensorrt-llm", concurrency=16, kv_cache_dtype="fp8"))
    assert narrow[-1:] == [f"file: kv_cache_config: {{{share}, dtype: fp8}}"]
    assert option not in grouped + narrow


def test_tensorrt_llm_reads_prompts_in_chunks_only_where_told_to() -> None:
    """Without, prompts of more tokens than a step takes are refused."""
    asked: dict[str, Any] = {"engine": "tensorrt-llm", "concurrency": 4, "generate": 256}
    long, short = (run(served("1xH100-SXM-80GB", "llama-3.1-8b", prompt=count, **asked)) for count in (20_000, 7936))
    assert value(long, "--max_num_tokens") == value(short, "--max_num_tokens") == "8192"
    assert "--enable_chunked_prefill" in long
    assert "--enable_chunked_prefill" not in short
    beside = run(served("1xH100-SXM-80GB", "llama-3.1-8b", prompt=1000, max_model_len=20_000, **asked))
    assert "--enable_chunked_prefill" in beside


@pytest.mark.parametrize("rank", [0, 1])
def test_replicas_on_several_nodes(rank: int) -> None:
    grouped = run(served("2x8xH200-SXM-141GB", pins={"tp": 1, "ep": 16}), rank)
    assert value(grouped, "--data-parallel-size-local") == "8"
    assert value(grouped, "--data-parallel-start-rank") == str(8 * rank)
    assert value(grouped, "--data-parallel-address") == "10.0.0.1"
    staged = run(served("2x8xH100-SXM-80GB", "llama-3.1-405b", pins={"tp": 8, "pp": 2}), rank)
    assert (value(staged, "--nnodes"), value(staged, "--node-rank")) == ("2", str(rank))
    assert value(staged, "--pipeline-parallel-size") == "2"
    for arguments in (grouped, staged):
        assert ("--headless" in arguments) == (rank > 0)
    sglang = run(served("2x8xH200-SXM-141GB", pins={"tp": 16, "ep": 16}, engine="sglang"), rank)
    assert (value(sglang, "--nnodes"), value(sglang, "--node-rank")) == ("2", str(rank))
    assert value(sglang, "--dist-init-addr") == "10.0.0.1:20000"
    trtllm = run(served("2x8xH200-SXM-141GB", pins={"tp": 16, "ep": 16}, engine="tensorrt-llm"), rank)
    assert trtllm[0].startswith("srun --nodes 2 --ntasks-per-node 8 --mpi pmix trtllm-llmapi-launch trtllm-serve")


def test_no_command_where_none_is_known() -> None:
    past = served("8xH100-SXM-80GB", "llama-3.1-8b", engine="vllm-2024")
    assert launch_words(past.plans[0], past) == []
    across = served("4x8xH200-SXM-141GB", pins={"tp": 16, "ep": 32})
    assert launch_words(across.plans[0], across) == []


def test_at_a_rate_the_limit_is_what_fits() -> None:
    result = served("8xH100-SXM-80GB", "llama-3.1-8b", rate_per_s=5.0)
    plan = result.plans[0]
    assert plan.concurrency < plan.most_requests
    assert value(run(result), "--max-num-seqs") == str(plan.most_requests)


def test_the_document_has_it_and_the_terminal_breaks_it_between_words() -> None:
    result = served(pins={"tp": 1, "ep": 8}, engine="tensorrt-llm", kv_cache_dtype="fp8")
    words = launch_words(result.plans[0], result)
    assert planner.to_document(result)["plans"][0]["launch"] == " ".join(words)
    lines = _broken(words, 60).split(" \\\n")
    assert len(lines) > 3
    assert " ".join(line.strip() for line in lines) == " ".join(words)
    assert any("'kv_cache_config: {free_gpu_memory_fraction: 0.9, dtype: fp8}'" in line for line in lines)


def test_memory_that_is_reserved_is_not_the_engines() -> None:
    result = served("1xH100-SXM-80GB", "llama-3.1-8b", memory_reserve_bytes=50e9)
    device = result.cluster.device
    share = float(value(run(result), "--gpu-memory-utilization"))
    assert share <= device.usable_memory_bytes / device.reported_memory_bytes < share + 0.001


def test_replicas_that_fill_nodes_in_part_have_no_command() -> None:
    result = served("16xGB200-186GB", pins={"tp": 2, "pp": 3, "ep": 2})
    assert result.plans[0].num_devices == 2 * 6
    assert launch_words(result.plans[0], result) == []


@pytest.mark.parametrize(("engine", "option"), [("vllm", "--enforce-eager"), ("sglang", "--disable-cuda-graph")])
def test_the_command_captures_graphs_or_not(engine: str, option: str) -> None:
    for eager in (False, True):
        result = served("1xH100-SXM-80GB", "llama-3.1-8b", engine=engine, eager=eager)
        assert (option in run(result)) == eager
        assert planner.to_document(result)["request"]["eager"] == eager
