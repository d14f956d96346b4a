"""Fused attention taken apart: arithmetic, exponentials, keys and values, queries, rounds of thread blocks.

A block of queries runs over its keys, so the time of a long sequence is the arithmetic's; the softmax takes one
exponential per score on units that are 16 wide per multiprocessor (CUDA C++ programming guide, arithmetic
instructions), which is what limits narrow heads and 8-bit arithmetic. Decoding reads every key once. Timings replay
one problem, whose keys stay in the last-level cache if they fit: memory and cache traffic are separate terms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import FloatArray, KernelCallBatch, KernelOp
from costmodels.kernels.device_features import GENERATIONS, OPERAND_BYTES, DeviceFormat
from costmodels.kernels.flash_tiles import flash_tiles
from costmodels.kernels.implementations import Engine, Library, engine_of, is_replayed, library_of
from costmodels.kernels.shared_memory import backward_stretch
from profiles.timing_ops import ATTENTION_BACKWARD_BYTES, ATTENTION_BACKWARD_FLOPS
from profiles.units import MICROSECOND

# Units of the terms that are not a device's: their coefficients are fitted, so they only set the scale.
CACHE_BYTES_PER_S_PER_SM = 30e9  # last-level cache, order of magnitude of A100 to B200
EXPONENTIALS_PER_S_PER_SM = 16 * 1.7e9
QUERY_TILE = 128.0  # query rows per thread block (FlashAttention-2, arXiv:2307.08691)
DECODE_TILE = 16.0  # smallest tile of the tensor cores' rows: query heads of one key head fill it
SPLIT_KEYS = 256.0  # keys below which decoding is not split over thread blocks
_TRITON_SPLITS = 8.0  # of the keys by Triton's decoding kernels, at most (SGLang's triton_attention_num_kv_splits)
_SPLIT_WAVES = 0.8  # of a round of blocks, from which keys are not split (FlashAttention's heuristic)
# Queries of a key head up to which decoding runs the same kernel: TensorRT-LLM has one for one query (MMHA), one for
# up to 64 (XQA), and takes the prefill's for more; its timings grow with the keys by different laws.
_QUERIES_PER_KEY = (1.0, 64.0)
_SHARING = np.array(["alone", "grouped", "wide"])
_OUTGROWN = 1.0  # log2 of traffic over cache from which nothing is served twice
CACHE_EDGE = 8.0  # how sharply traffic moves from cache to memory where the operands outgrow it
_SHARES = 20.0  # of a score matrix, that are told apart: timings count the diagonal of a causal mask, plans do not
_HOPPER, _BLACKWELL, _CDNA = GENERATIONS["hopper"], GENERATIONS["blackwell"], GENERATIONS["cdna1"]
_INTERFACES = (Library.UNKNOWN, Library.FLASH_2, Library.FLASH_3, Library.CUDNN)


def value_width(calls: KernelCallBatch) -> FloatArray:
    """(C,) key plus value width of a head, from the operations the call counts."""
    scores = calls.batch * calls.heads * calls.m * calls.n * calls.causal
    passes = np.where(calls.op == KernelOp.ATTENTION_BACKWARD, ATTENTION_BACKWARD_FLOPS, 1.0)
    return np.asarray(calls.flops / np.maximum(2.0 * scores * passes, 1.0))


def traffic(calls: KernelCallBatch) -> tuple[FloatArray, FloatArray]:
    """(C,) bytes of keys and values, and of queries and output."""
    passes = np.where(calls.op == KernelOp.ATTENTION_BACKWARD, ATTENTION_BACKWARD_BYTES, 1.0)
    query_bytes = passes * calls.element_bytes * calls.batch * calls.m * calls.heads * value_width(calls)
    return np.maximum(calls.bytes - query_bytes, 0.0), np.minimum(query_bytes, calls.bytes)


def key_bytes(calls: KernelCallBatch) -> FloatArray:
    """(C,) bytes per element of the keys and values, rounded to 1, 2 or 4."""
    keys, _ = traffic(calls)
    passes = np.where(calls.op == KernelOp.ATTENTION_BACKWARD, ATTENTION_BACKWARD_BYTES, 1.0)
    elements = passes * calls.batch * calls.n * calls.kv_heads * value_width(calls)
    return np.asarray(2.0 ** np.clip(np.round(np.log2(np.maximum(keys / np.maximum(elements, 1.0), 0.5))), 0, 2))


def blocks(calls: KernelCallBatch) -> tuple[FloatArray, FloatArray]:
    """(C,) thread blocks without splits over the keys, and computed over wanted scores."""
    decode = calls.op == KernelOp.ATTENTION_DECODE
    group = np.maximum(calls.heads / np.maximum(calls.kv_heads, 1.0), 1.0)
    rows = np.maximum(np.where(decode, group * calls.m, calls.m), 1.0)
    tile = np.where(decode, DECODE_TILE, QUERY_TILE)
    count = np.where(decode, calls.batch * calls.kv_heads, calls.batch * calls.heads) * np.ceil(rows / tile)
    whole = np.ceil(rows / tile) * tile / rows
    # Tiles on the diagonal of a causal mask are computed whole.
    masked = (calls.causal < 1) & ~decode & (rows >= tile)
    return count, np.where(masked, whole + tile / 2 / np.maximum(calls.n, 1.0), whole)


def missed_share(moved_bytes: FloatArray, calls: KernelCallBatch, device: DeviceFormat) -> FloatArray:
    """(C,) share of the traffic that the last-level cache does not serve: all of it unless a problem is replayed."""
    return np.where(is_replayed(calls.implementation), outgrown_share(moved_bytes, device), 1.0)


def outgrown_share(held_bytes: FloatArray, device: DeviceFormat) -> FloatArray:
    """(C,) share of so many bytes, used over and over, that the last-level cache does not serve."""
    outgrown = np.minimum(np.maximum(held_bytes, 1.0) / device.l2_bytes, 1e6)
    return np.asarray(1.0 - 1.0 / (1.0 + outgrown**CACHE_EDGE))


def cache_ratio(moved_bytes: FloatArray, calls: KernelCallBatch, device: DeviceFormat) -> FloatArray:
    """(C,) log2 of the traffic over the last-level cache; a problem that is not replayed counts as outgrowing it."""
    ratio = np.log2(np.maximum(moved_bytes, 1.0) / device.l2_bytes)
    return np.where(is_replayed(calls.implementation), ratio, np.maximum(ratio, _OUTGROWN))


def attention_terms(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """Seconds at ideal rates, columns of length C."""
    decode = calls.op == KernelOp.ATTENTION_DECODE
    count, padded = blocks(calls)
    keys, queries = traffic(calls)
    scores = calls.batch * calls.heads * calls.m * calls.n * calls.causal
    stretch = backward_stretch(calls, device.flops_per_s, device.num_sms)
    held_flops_per_s = device.flops_per_s * device.held
    arithmetic_s = stretch * calls.flops * padded / held_flops_per_s
    waves = count / device.num_sms
    missed = missed_share(keys + queries, calls, device)
    cache_bytes_per_s = device.num_sms * CACHE_BYTES_PER_S_PER_SM
    width = value_width(calls)
    sm_flops_per_s = held_flops_per_s / device.num_sms
    # A block on its own takes its keys at one multiprocessor's rate.
    block_s = np.where(
        decode,
        _split_keys(calls) * width * key_bytes(calls) / CACHE_BYTES_PER_S_PER_SM,
        2.0 * QUERY_TILE * calls.n * width / sm_flops_per_s,
    )
    return {
        "launch": np.full(len(calls), MICROSECOND),
        "arithmetic": arithmetic_s,
        "exponentials": scores * padded / (device.num_sms * EXPONENTIALS_PER_S_PER_SM),
        "tail": arithmetic_s * (np.ceil(waves) / np.maximum(waves, 1e-9) - 1.0),
        "block": block_s,
        "keys_memory": keys * missed / device.bytes_per_s,
        "keys_cache": keys * (1.0 - missed) / cache_bytes_per_s,
        "queries_memory": queries * missed / device.bytes_per_s,
        "queries_cache": queries * (1.0 - missed) / cache_bytes_per_s,
        "rounds": waves * MICROSECOND,
        "split": np.where(decode, np.minimum(calls.n / SPLIT_KEYS, 1.0), 0.01 * calls.batch) * MICROSECOND,
    }


def _split_keys(calls: KernelCallBatch) -> FloatArray:
    """(C,) keys that one block decodes: blocks grow in number with the keys and take their root, but for Triton's."""
    triton = library_of(calls.implementation) == Library.TRITON
    shared = np.where(triton, np.maximum(calls.n, SPLIT_KEYS) / _TRITON_SPLITS, np.sqrt(SPLIT_KEYS * calls.n))
    return np.minimum(calls.n, shared)


def decode_terms(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """The same for decoding, the part of the last round of blocks that the device does not fill with keys, and joining.

    What blocks found in their parts of the keys, another kernel puts together (FlashAttention's
    ``flash_fwd_splitkv_combine_kernel`` and its like).
    """
    count, _ = blocks(calls)
    keys, _ = traffic(calls)
    waves = count / device.num_sms
    idle = np.where(waves < _SPLIT_WAVES, 0.0, np.ceil(waves) / np.maximum(waves, 1e-9) - 1.0)
    joins = (waves < _SPLIT_WAVES) & (calls.n > SPLIT_KEYS)
    return dict(attention_terms(calls, device)) | {
        "round_of_keys": idle * keys / device.bytes_per_s,
        "joined": np.where(joins, MICROSECOND, 0.0),
    }


def attention_features(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """What the trees see: ratios of the terms, the shape, and who runs it; columns of length C."""
    count, padded = blocks(calls)
    keys, queries = traffic(calls)
    waves = np.maximum(count, 1.0) / device.num_sms
    terms = attention_terms(calls, device)
    compute = terms["arithmetic"] + terms["exponentials"]
    moved_s = (keys + queries) / device.bytes_per_s
    library, engine = resolved(calls, device)
    return {
        "size": np.log2((compute + moved_s) / MICROSECOND + 1.0),
        "intensity": np.log2(np.maximum(compute, 1e-12) / np.maximum(moved_s, 1e-12)),
        "waves": np.log2(waves),
        "tail": np.where(waves < 8, np.ceil(waves) / waves, 1.0),
        "alone": np.log2(np.maximum(terms["block"], 1e-12) / np.maximum(compute, 1e-12)),
        "cache": cache_ratio(keys + queries, calls, device),
        "log_keys": np.log2(np.maximum(calls.n, 1.0)),
        "log_queries": np.log2(np.maximum(calls.m, 1.0)),
        "prefix": np.log2(np.maximum(calls.n, 1.0) / np.maximum(calls.m, 1.0)),
        "log_batch": np.log2(np.maximum(calls.batch, 1.0)),
        "log_kv_heads": np.log2(np.maximum(calls.kv_heads, 1.0)),
        "group": np.log2(np.maximum(calls.heads, 1.0) / np.maximum(calls.kv_heads, 1.0)),
        "width": calls.k,
        "padded": padded,
        "causal": np.round(_SHARES * calls.causal) / _SHARES,
        "queries_share": np.log2(np.maximum(queries, 1.0) / np.maximum(keys, 1.0)),
        "key_bytes": key_bytes(calls),
        "operand_bytes": OPERAND_BYTES[calls.gemm_format],
        "library": library.astype(np.float64),
        "engine": engine.astype(np.float64),
        "generation": np.full(len(calls), device.generation),
    }


def forward_terms(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """``attention_terms`` of forward passes, and what FlashAttention-2 does besides whole tiles (``flash_tiles``)."""
    width, flash = value_width(calls), _by_flash_2(calls, device)
    tiles = flash_tiles(calls, device.num_sms, width / 2.0)
    outgrown = outgrown_share(tiles.partial_bytes, device)
    cache_bytes_per_s = device.num_sms * CACHE_BYTES_PER_S_PER_SM
    partial_s = tiles.partial_bytes * (outgrown / device.bytes_per_s + (1.0 - outgrown) / cache_bytes_per_s)
    terms, splits = dict(attention_terms(calls, device)), np.where(flash, tiles.splits, 1.0)
    return terms | {
        "block": terms["block"] / splits,
        "masked": np.where(flash, 2.0 * tiles.masked_scores * width / device.flops_per_s, 0.0),
        "partial": np.where(flash, partial_s, 0.0),
        "together": np.where(splits > 1, MICROSECOND, 0.0),
    }


def forward_features(calls: KernelCallBatch, device: DeviceFormat) -> Mapping[str, FloatArray]:
    """``attention_features`` of forward passes, and the same of FlashAttention-2."""
    flash = _by_flash_2(calls, device)
    tiles = flash_tiles(calls, device.num_sms, value_width(calls) / 2.0)
    return dict(attention_features(calls, device)) | {
        "masked": np.where(flash, tiles.masked_share, 0.0),
        "splits": np.where(flash, np.log2(tiles.splits), 0.0),
    }


def _by_flash_2(calls: KernelCallBatch, device: DeviceFormat) -> NDArray[np.bool_]:
    """(C,) that FlashAttention-2 runs over sequences of one length.

    Engines hand it sequences of many lengths: it then takes none to be whole tiles, and splits no keys.
    """
    library, engine = resolved(calls, device)
    whole = np.isin(engine, (Engine.UNKNOWN, Engine.PYTORCH, Engine.TRANSFORMER_ENGINE))
    return np.asarray((library == Library.FLASH_2) & whole)


def resolved(calls: KernelCallBatch, device: DeviceFormat) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(C,) ``Library`` and ``Engine`` codes; an unknown library is the one that frameworks pick on the device.

    On AMD's, interfaces of FlashAttention run AMD's kernels, whoever calls them. Of decoding none of theirs was timed.
    """
    library, engine = library_of(calls.implementation), engine_of(calls.implementation)
    if device.generation >= _CDNA:
        ours = np.isin(library, _INTERFACES) & (calls.op != KernelOp.ATTENTION_DECODE)
        library, engine = np.where(ours, int(Library.AITER), library), np.where(ours, int(Engine.UNKNOWN), engine)
    usual = Library.FLASH_2
    if device.generation == _HOPPER:
        usual = Library.FLASH_3
    elif device.generation == _BLACKWELL:
        usual = Library.TRTLLM_GEN
    return np.where(library == Library.UNKNOWN, int(usual), library), engine


def attention_paths(calls: KernelCallBatch, device: DeviceFormat) -> Sequence[NDArray[np.str_]]:
    """Groups of coefficients: number format, library, engine, generation of the device."""
    library, engine = resolved(calls, device)
    narrow = [f"q{q:g}k{k:g}" for q, k in zip(OPERAND_BYTES[calls.gemm_format], key_bytes(calls), strict=True)]
    return nested_paths(np.array(narrow, dtype="<U48"), library, engine, device.generation)


def nested_paths(
    formats: NDArray[np.str_], library: NDArray[np.int64], engine: NDArray[np.int64], generation: float
) -> tuple[NDArray[np.str_], ...]:
    """(C,) names of groups, each within the one before: formats, library, engine, kin and own generation of the device.

    Args:
        formats: (C,) names of the number formats.
        library: (C,) ``Library`` codes.
        engine: (C,) ``Engine`` codes.
        generation: Of the device, in ``device_features.GENERATIONS``.
    """
    by_library = joined(formats, np.array([Library(code).name.lower() for code in library], dtype="<U48"))
    by_engine = joined(by_library, np.array([Engine(code).name.lower() for code in engine], dtype="<U48"))
    nearest = np.floor(generation)  # of workstation Blackwell, which has a half, Ada
    kin, own = (joined(by_engine, np.full(len(formats), f"g{value:g}")) for value in (nearest, generation))
    return formats, by_library, by_engine, kin, own


def decode_paths(calls: KernelCallBatch, device: DeviceFormat) -> Sequence[NDArray[np.str_]]:
    """The same for decoding, where kernels differ by how many queries share a key head as well."""
    formats, by_library, by_engine, kin, own = attention_paths(calls, device)
    shared = calls.heads / np.maximum(calls.kv_heads, 1.0)
    by_sharing = joined(by_engine, _SHARING[np.searchsorted(_QUERIES_PER_KEY, shared)])
    generations = (np.array([name.rpartition("/")[2] for name in names.tolist()], dtype="<U8") for names in (kin, own))
    return formats, by_library, by_engine, by_sharing, *(joined(by_sharing, names) for names in generations)


def joined(first: NDArray[np.str_], second: NDArray[np.str_]) -> NDArray[np.str_]:
    """Names of groups one step finer."""
    return np.char.add(np.char.add(first, "/"), second)


def attention_floor_s(calls: KernelCallBatch, device: DeviceFormat) -> FloatArray:
    """(C,) arithmetic at the peak, or the operands once from the cache; narrow keys may be multiplied as such."""
    keys, queries = traffic(calls)
    faster = np.where(key_bytes(calls) < OPERAND_BYTES[calls.gemm_format], 2.0, 1.0)
    outgrown = keys + queries > 4.0 * device.l2_bytes
    fastest = np.where(outgrown, 1.0, np.inf)
    return np.maximum(calls.flops / (device.flops_per_s * faster), (keys + queries) / (device.bytes_per_s * fastest))
