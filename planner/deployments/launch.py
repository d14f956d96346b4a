"""The command that starts one replica of a deployment, in the options of its engine.

Each says what the plan rests on: degrees, the longest request, requests at once, tokens of a step, the share of
memory, formats and what drafts tokens. ``$MODEL`` is the checkpoint, ``$DRAFT`` that of a draft; a replica on several
nodes runs it on each, with ``$NODE_RANK`` from 0 and ``$HEAD`` the first one's address, but for TensorRT-LLM, which
Slurm starts on all of them.

Source:
    vLLM 0.33: ``vllm serve --help``, its pages on data- and expert-parallel deployment and on pooling models, of which
    ``--runner pooling`` makes one of any decoder (``--task embed`` before 0.10.1; which, ``--convert``, follows from
    the checkpoint's architecture); SGLang 0.5: server arguments (``--is-embedding``, its page on embedding models),
    of which running requests and chunks are shared out over the attention groups (``managers/tp_worker.py``,
    ``server_args.py``), and over micro-batches in flight, rounded down (``managers/scheduler.py``,
    ``pp_max_micro_batch_size``); TensorRT-LLM 1.2 and later: ``trtllm-serve --help`` and the LLM API's options,
    of which a file's ``kv_cache_config`` replaces that of the command line (``llmapi/llm_args.py``,
    ``update_llm_args_with_extra_dict``) and ``max_batch_size`` is of a micro-batch (``_torch/pyexecutor/_util.py``,
    ``max_num_sequences``). Before, ``Eagle3`` was ``Eagle`` (pull request 10124), ``speculative_model`` had other
    names, and chunked prefill no option on the command line (issue 4947).

    Graphs are captured for the plan's batches where they are not by themselves. SGLang's are of 8 to 512 sequences, by
    the device (``server_args.py``, ``_handle_gpu_memory_settings``; newer releases call the option
    ``--cuda-graph-max-bs-decode`` and take the older name, too); TensorRT-LLM's of every number up to 32, of 64 and of
    128 (``llmapi/llm_args.py``, ``CudaGraphConfig``).
"""

from collections.abc import Callable, Mapping
from math import ceil, floor
from types import MappingProxyType

from planner.deployments.results import ServingPlan, ServingResult
from planner.deployments.speculation import Drafting
from planner.deployments.states import EIGHT_BITS
from profiles.engines import DRAFT_MODEL

_NGRAM = 4  # tokens that are looked up, the longest of vLLM's example
_SGLANG_DRAFTS = {"eagle3": "EAGLE3", "eagle": "EAGLE", "mtp": "EAGLE", "ngram": "NGRAM", DRAFT_MODEL: "STANDALONE"}
_TENSORRT_DRAFTS = {"eagle3": "Eagle3", "mtp": "MTP", "ngram": "NGram", DRAFT_MODEL: "Draft_Target"}
_COMPRESSED_BLOCK = "256"  # tokens of a block of compressed keys (vllm-project/recipes, DeepSeek-V4)
_MOST_CAPTURED = 512  # sequences of the largest graph that SGLang and vLLM capture by themselves; more need none
_EACH_CAPTURED = 32  # TensorRT-LLM has a graph of every number of sequences up to this
_CAST = "fp8"  # weights that engines make of 16 bits themselves
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
Words = list[str]


def launch_words(plan: ServingPlan, result: ServingResult) -> Words:
    """What one node of a replica runs: words of a POSIX shell, between which a line may break.

    None for engines of the past, for replicas that fill some of their nodes in part, and where vLLM's own options do
    not say it: tensors of several attention groups that are cut across nodes.
    """
    written, devices = _ENGINES.get(result.engine.name), plan.num_devices // plan.replicas
    node = result.cluster.node.devices_per_node
    ragged = devices > node and devices % node != 0
    return [] if written is None or ragged else written(plan, result)


def most_running(plan: ServingPlan, result: ServingResult) -> int:
    """Requests that one attention group may run at once for the plan to be kept: those it was priced with.

    At a rate, and over a run, the requests at once are an average, and what fits or was asked for is the limit. Those
    that end with their prompt are at once in a step only, which takes as many as fit.
    """
    job, groups = result.job, plan.attention_groups
    fitting = plan.most_requests // groups
    if job.ends_with_prompt:
        return fitting
    average = job.rate_per_s is not None or job.requests is not None
    wanted = job.concurrency or (plan.most_requests if average else plan.concurrency)
    return min(max(ceil(wanted / groups), 1), fitting)


def _most_in_stage(plan: ServingPlan, result: ServingResult) -> int:
    """Requests of one attention group's micro-batch; as many of these as stages are in flight."""
    return ceil(most_running(plan, result) / plan.pipeline_parallel)


def _captured(plan: ServingPlan, result: ServingResult) -> int:
    """Sequences of the largest batch that is to be replayed as a graph; 0 where no tokens are decoded, or none is."""
    decodes = result.engine.captures_graphs and not result.job.ends_with_prompt
    return min(_most_in_stage(plan, result), _MOST_CAPTURED) if decodes else 0


def _share(plan: ServingPlan, result: ServingResult) -> str:
    """Of memory, for the engine to use: its own, or less where memory is reserved, so that the cache is the plan's."""
    memory, own = plan.memory, result.engine.memory_utilization
    device = result.cluster.device
    least = float(result.engine.least_share(device, memory.weights, memory.activations + memory.fixed, memory.cache))
    return f"{own if least > own * (1 - 1e-9) else floor(1000 * least) / 1000:g}"


def _nodes(plan: ServingPlan, result: ServingResult) -> int:
    return ceil(plan.num_devices / plan.replicas / result.cluster.node.devices_per_node)


def _vllm(plan: ServingPlan, result: ServingResult) -> Words:
    groups, nodes = plan.attention_groups, _nodes(plan, result)
    if groups > 1 and groups % nodes:
        return []
    words = ["vllm", "serve", '"$MODEL"', *(["--runner", "pooling"] if result.job.pools else [])]
    words += ["--tensor-parallel-size", f"{plan.tensor_parallel}"]
    if plan.pipeline_parallel > 1:
        words += ["--pipeline-parallel-size", f"{plan.pipeline_parallel}"]
    if groups > 1:
        words += ["--data-parallel-size", f"{groups}"]
    if plan.expert_parallel > 1:
        words += ["--enable-expert-parallel"]
    words += ["--max-model-len", f"{result.job.max_model_len}", "--max-num-seqs", f"{most_running(plan, result)}"]
    words += ["--max-num-batched-tokens", f"{result.engine.prefill_tokens}"]
    words += ["--gpu-memory-utilization", _share(plan, result), *_formats(result, "fp8")]
    words += ["--block-size", _COMPRESSED_BLOCK] if result.model.compressed_attention is not None else []
    words += [] if result.engine.captures_graphs else ["--enforce-eager"]
    if result.speculation is not None:
        words += ["--speculative-config", _vllm_drafts(result.speculation)]
    if nodes == 1:
        return words
    if groups > 1:
        each = groups // nodes
        words += ["--data-parallel-size-local", f"{each}", "--data-parallel-address", '"$HEAD"']
        words += ["--data-parallel-start-rank", f"$((NODE_RANK * {each}))"]
    else:
        words += ["--nnodes", f"{nodes}", "--node-rank", '"$NODE_RANK"', "--master-addr", '"$HEAD"']
    return [*words, '$([ "$NODE_RANK" -gt 0 ] && echo --headless)']


def _vllm_drafts(asked: Drafting) -> str:
    """JSON in single quotes, but for the path of the draft."""
    options = {"method": f'"{asked.method}"', "num_speculative_tokens": f"{asked.tokens.draft_tokens}"}
    if asked.has_checkpoint:
        options["model"] = '"\'"$DRAFT"\'"'
    if asked.method == "ngram":
        options["prompt_lookup_max"] = f"{_NGRAM}"
    return "'{" + ", ".join(f'"{name}": {value}' for name, value in options.items()) + "}'"


def _sglang(plan: ServingPlan, result: ServingResult) -> Words:
    groups, stages, nodes = plan.attention_groups, plan.pipeline_parallel, _nodes(plan, result)
    if stages % nodes and nodes % stages:  # nodes hold whole stages, or stages whole nodes (entrypoints/engine.py)
        return []
    words = ["python", "-m", "sglang.launch_server", "--model-path", '"$MODEL"']
    words += ["--is-embedding"] if result.job.pools else []
    words += ["--tp-size", f"{plan.tensor_parallel * groups}"]
    if stages > 1:
        words += ["--pp-size", f"{stages}"]
    if groups > 1:
        words += ["--dp-size", f"{groups}", "--enable-dp-attention"]
    if plan.expert_parallel > 1:
        words += ["--ep-size", f"{plan.expert_parallel}"]
    words += ["--context-length", f"{result.job.max_model_len}"]
    words += ["--max-running-requests", f"{groups * stages * _most_in_stage(plan, result)}"]
    words += ["--chunked-prefill-size", f"{groups * result.engine.prefill_tokens}"]
    words += ["--mem-fraction-static", _share(plan, result), *_formats(result, "fp8_e4m3")]
    if result.model.indexer is not None and result.kv_cache_dtype != EIGHT_BITS:
        words += ["--kv-cache-dtype", "bfloat16"]  # else 8 bits on Blackwell (_set_default_nsa_kv_cache_dtype)
    if result.weights is not None and result.weights.beside:  # SGLang documentation, DeepSeek-V4
        hopper = result.cluster.device.architecture == "hopper"
        words += ["--moe-runner-backend", "marlin" if hopper else "flashinfer_mxfp4"]
    captured = _captured(plan, result)
    words += ["--cuda-graph-max-bs", f"{captured}"] if captured else []
    words += [] if result.engine.captures_graphs else ["--disable-cuda-graph"]
    words += [] if result.speculation is None else _sglang_drafts(result.speculation)
    if nodes > 1:
        words += ["--nnodes", f"{nodes}", "--node-rank", '"$NODE_RANK"', "--dist-init-addr", '"$HEAD:20000"']
    return words


def _sglang_drafts(asked: Drafting) -> Words:
    words = ["--speculative-algorithm", _SGLANG_DRAFTS[asked.method]]
    if asked.has_checkpoint:
        words += ["--speculative-draft-model-path", '"$DRAFT"']
    tokens = asked.tokens
    if asked.method != "ngram":
        words += ["--speculative-num-steps", f"{tokens.draft_tokens}", "--speculative-eagle-topk", f"{tokens.branches}"]
    return [*words, "--speculative-num-draft-tokens", f"{tokens.verified}"]


def _tensorrt_llm(plan: ServingPlan, result: ServingResult) -> Words:
    groups, nodes = plan.attention_groups, _nodes(plan, result)
    share, narrow = _share(plan, result), result.kv_cache_dtype == EIGHT_BITS
    options = ["enable_attention_dp: true"] if groups > 1 else []
    if result.speculation is not None:
        options += [f"speculative_config: {{{_tensorrt_drafts(result.speculation)}}}"]
    if (captured := _captured(plan, result)) > _EACH_CAPTURED:
        options += [f"cuda_graph_config: {{enable_padding: true, max_batch_size: {captured}}}"]
    if options or narrow:
        cache = f"free_gpu_memory_fraction: {share}" + (", dtype: fp8" if narrow else "")
        cache += ", tokens_per_block: 128" if result.model.compressed_attention is not None else ""
        options += [f"kv_cache_config: {{{cache}}}"]
    words = ["printf", r"'%s\n'", *(f"'{line}'" for line in options), ">", "options.yaml", "&&"] if options else []
    if nodes > 1:
        each = result.cluster.node.devices_per_node
        words += ["srun", "--nodes", f"{nodes}", "--ntasks-per-node", f"{each}", "--mpi", "pmix"]
        words += ["trtllm-llmapi-launch"]
    words += ["trtllm-serve", '"$MODEL"', "--tp_size", f"{plan.tensor_parallel * groups}"]
    if plan.pipeline_parallel > 1:
        words += ["--pp_size", f"{plan.pipeline_parallel}"]
    if plan.expert_parallel > 1:
        words += ["--ep_size", f"{plan.expert_parallel}"]
    words += ["--max_seq_len", f"{result.job.max_model_len}", "--max_batch_size", f"{_most_in_stage(plan, result)}"]
    words += ["--max_num_tokens", f"{result.engine.prefill_tokens}"]
    # Off unless said, and longer prompts are refused then (TensorRT-LLM issues 9277 and 4947; llmapi/llm.py,
    # _check_arguments).
    words += ["--enable_chunked_prefill"] if result.job.max_model_len > result.engine.prefill_tokens else []
    last = ["--extra_llm_api_options", "options.yaml"] if options else ["--kv_cache_free_gpu_memory_fraction", share]
    return words + last


def _tensorrt_drafts(asked: Drafting) -> str:
    """Of a mapping in YAML, within single quotes; the shell fills in the path of the draft.

    Layers for further tokens draft as many tokens as ``num_nextn_predict_layers`` says up to 1.2, and ``max_draft_len``
    from 1.3 on, which drops the other with a warning (``_remap_deprecated_num_nextn_predict_layers``, pull request
    12341). Up to 1.2 it is one token without it, whatever ``max_draft_len`` says.
    """
    tokens = asked.tokens.draft_tokens
    words = f"decoding_type: {_TENSORRT_DRAFTS[asked.method]}, max_draft_len: {tokens}"
    words += f", num_nextn_predict_layers: {tokens}" if asked.method == "mtp" else ""
    return words + (", speculative_model: '\"$DRAFT\"'" if asked.has_checkpoint else "")


def _formats(result: ServingResult, cache: str) -> Words:
    """Formats of 16 bits and of the cache; engines read those of quantised weights in the checkpoint.

    They quantise one of 16 bits to ``fp8`` as they load it, and refuse to do so with one that is quantised.
    """
    words = ["--dtype", _DTYPES[result.precision]]
    if result.weights is not None and result.weights.name == _CAST and not result.model.checkpoint_weights:
        words += ["--quantization", _CAST]
    return words + (["--kv-cache-dtype", cache] if result.kv_cache_dtype == EIGHT_BITS else [])


_ENGINES: Mapping[str, Callable[[ServingPlan, ServingResult], Words]] = MappingProxyType(
    {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm}
)
