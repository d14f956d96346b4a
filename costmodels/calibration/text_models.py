"""The ablation of text models: what reading MLIR as language gives, against reading numbers off it.

``python -m costmodels.calibration.text_models --data DATA --out docs/text-models.md`` takes a fixed sample of
the published timings, trains every model on three splits and writes the page. Needs the extras ``fit`` and
``neural``. Deterministic on one machine; one seed per model.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from costmodels.calibration.kernel_tables import DEVICES
from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.features import KernelFeatures
from costmodels.kernels.mlir.kernel import Kernel
from costmodels.kernels.mlir.parse import parse
from costmodels.kernels.mlir.text_model import train
from costmodels.kernels.mlir.tokens import Scheme, tokens
from profiles.catalog import default_catalog
from profiles.hardware import DeviceSpec

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

SEED = 20261125
EPOCHS = 8
_LEAST_US = 10.0  # shorter kernels are half timer resolution in these tables
_SAMPLES = {"gemm": 3000, "attention": 1200, "elementwise": 1800}
_FORMATS = {"bf16": "bf16", "fp16": "fp16"}
_SOURCES = ("aiconfigurator", "vidur", "vidur-history", "simumax")
_ELEMENTWISE = {
    "norm": "rms_norm", "silu_mul": "swiglu", "gelu": "gelu", "rope": "rotary", "add": "add",
    "embedding": "embedding", "static_quant": "quantise",
}  # fmt: skip
_HELD_OUT_GPU = "H100-SXM-80GB"
_HELD_OUT_SHARE = 0.2
_ROUNDS = 300
_TREES = {
    "num_leaves": 31, "learning_rate": 0.06, "min_child_samples": 10, "num_threads": 1, "deterministic": True,
    "force_row_wise": True, "verbosity": -1, "seed": SEED,
}  # fmt: skip
_COUNTED = (
    "dot_general", "convert", "multiply", "add", "subtract", "divide", "reduce", "exponential", "rsqrt", "tanh",
    "maximum", "gather", "select", "compare", "concatenate", "slice",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """N measured kernels with their texts.

    Attributes:
        texts: Canonical texts.
        features: What they say.
        device: (N, F) logarithms of the device's rates.
        names: (N,) device of each.
        groups: (N,) shapes without the number of tokens: what is held out together as unseen.
        roofline_s, time_s: (N,) bound read off the text, and measured.
    """

    texts: Sequence[str]
    features: Sequence[KernelFeatures]
    device: FloatArray
    names: NDArray[np.str_]
    groups: NDArray[np.str_]
    roofline_s: FloatArray
    time_s: FloatArray


def load(folder: Path) -> Samples:
    """The fixed sample of the published tables."""
    kernels: list[Kernel] = []
    rows: list[tuple[str, str, float]] = []
    for name, size in _SAMPLES.items():
        table = pd.read_csv(folder / f"{name}.csv.gz", low_memory=False)
        table = table[table["source"].isin(_SOURCES) & table["gpu"].isin(DEVICES) & (table["time_us"] >= _LEAST_US)]
        table = _usable(name, table)
        share = size / table["gpu"].nunique()
        drawn = [part.sample(min(len(part), round(share)), random_state=SEED) for _, part in table.groupby("gpu")]
        for row in pd.concat(drawn).to_dict("records"):
            kernel, group = _kernel(name, row)
            kernels.append(kernel)
            rows.append((DEVICES[row["gpu"]], group, row["time_us"] * 1e-6))
    catalog = default_catalog().devices
    texts = [emit(kernel) for kernel in kernels]
    features = [parse(text)[0] for text in texts]
    devices = [catalog[device] for device, _, _ in rows]
    return Samples(
        texts=texts,
        features=features,
        device=np.asarray([_rates(device) for device in devices]),
        names=np.asarray([device for device, _, _ in rows]),
        groups=np.asarray([group for _, group, _ in rows]),
        roofline_s=np.asarray([_bound_s(item, device) for item, device in zip(features, devices, strict=True)]),
        time_s=np.asarray([time_s for _, _, time_s in rows]),
    )


def _usable(name: str, table: "pd.DataFrame") -> "pd.DataFrame":
    if name == "elementwise":
        return table[table["op"].isin(_ELEMENTWISE)]
    table = table[table["dtype"].isin(_FORMATS)]
    if name == "attention":
        return table[table["phase"].isin(("prefill", "decode"))]
    return table


def _kernel(name: str, row: Mapping[str, Any]) -> tuple[Kernel, str]:
    """The kernel of a row, and its shape without the number of tokens."""
    if name == "gemm":
        kernel = Kernel(
            op="gemm", format=_FORMATS[row["dtype"]], m=int(row["m"]), n=int(row["n"]), k=int(row["k"]),
            batch=int(row["batch"]),
        )  # fmt: skip
        return kernel, f"gemm {kernel.n} {kernel.k}"
    if name == "attention":
        causal = 1.0 - row["seq_q"] / (2 * row["seq_kv"]) if row["causal"] and row["phase"] == "prefill" else 1.0
        heads = int(row["heads"])
        kernel = Kernel(
            op="sdpa_decode" if row["phase"] == "decode" else "sdpa", format=_FORMATS[row["dtype"]],
            m=int(row["seq_q"]), n=int(row["seq_kv"]), k=int(row["head_dim"]), batch=int(row["batch"]), heads=heads,
            kv_heads=int(row["kv_heads"]), causal=causal,
        )  # fmt: skip
        return kernel, f"attention {heads} {kernel.kv_heads} {kernel.k}"
    op = _ELEMENTWISE[row["op"]]
    *lead, width = (int(word) for word in row["shape"].split("x"))
    storage = "bf16" if row["dtype"].startswith("bf16") else "f16"
    kernel = Kernel(op=op, storage=storage, m=int(np.prod(lead)), n=width, k=128 if op == "rotary" else 0)
    return kernel, f"{op} {width}"


def _rates(device: DeviceSpec) -> tuple[float, ...]:
    rates = (device.peak("fp16"), device.memory_bandwidth_bytes_per_s, device.num_sms, device.l2_bytes)
    return tuple(float(np.log(rate)) for rate in rates)


def _bound_s(kernel: KernelFeatures, device: DeviceSpec) -> float:
    """The longer of arithmetic at peak and traffic at peak."""
    arithmetic_s = kernel.matrix_flops / device.peak(kernel.format or "fp16")
    return max(arithmetic_s, kernel.bytes / device.memory_bandwidth_bytes_per_s)


def columns(samples: Samples) -> FloatArray:
    """(N, C) numbers read off the texts, with the device: what the trees see."""
    rows = []
    for kernel, bound_s, device in zip(samples.features, samples.roofline_s, samples.device, strict=True):
        sizes = (
            kernel.matrix_flops, kernel.pointwise_flops, kernel.transcendentals, kernel.bytes, kernel.m, kernel.n,
            kernel.k, kernel.batch, kernel.heads, kernel.kv_heads, kernel.reduced,
        )  # fmt: skip
        sms = float(np.exp(device[2]))
        waves = kernel.batch * max(kernel.heads, 1.0) * np.ceil(kernel.m / 128) * np.ceil(kernel.n / 128) / sms
        rows.append(
            [*np.log1p(sizes), np.log(bound_s), waves, np.ceil(waves) / max(waves, 1e-9), kernel.causal,
             kernel.element_bytes, float(kernel.op), float(kernel.family), float(kernel.arguments),
             *(float(kernel.histogram.get(name, 0)) for name in _COUNTED), *device]
        )  # fmt: skip
    return np.asarray(rows)


def splits(samples: Samples) -> dict[str, Mask]:
    """(N,) rows held out, per split."""
    random = np.random.default_rng(SEED)
    rows = random.random(len(samples.time_s)) < _HELD_OUT_SHARE
    names = np.unique(samples.groups)
    held = names[random.random(len(names)) < _HELD_OUT_SHARE]
    return {
        "random": rows,
        "unseen shapes": np.isin(samples.groups, held),
        "unseen GPU": samples.names == _HELD_OUT_GPU,
    }


Predict = Callable[[Samples, Mask], FloatArray]


def _text(scheme: Scheme, *, kind: str = "conv", residual: bool = False) -> Predict:
    def predict(samples: Samples, held: Mask) -> FloatArray:
        words = [tokens(text, scheme) for text in samples.texts]
        base = np.log(samples.roofline_s) if residual else np.zeros(len(samples.time_s))
        fitted = np.flatnonzero(~held)
        model = train(
            [words[row] for row in fitted], samples.device[fitted], (np.log(samples.time_s) - base)[fitted],
            kind=kind, epochs=EPOCHS, seed=SEED,
        )  # fmt: skip
        judged = np.flatnonzero(held)
        found = model.predict([words[row] for row in judged], samples.device[judged])
        return np.asarray(np.exp(found + base[judged]))

    return predict


def _trees(*, residual: bool) -> Predict:
    def predict(samples: Samples, held: Mask) -> FloatArray:
        import lightgbm

        table = columns(samples)
        base = np.log(samples.roofline_s) if residual else np.zeros(len(samples.time_s))
        data = lightgbm.Dataset(table[~held], (np.log(samples.time_s) - base)[~held])
        booster = lightgbm.train(_TREES, data, num_boost_round=_ROUNDS)
        return np.asarray(np.exp(np.asarray(booster.predict(table[held])) + base[held]))

    return predict


def _roofline(samples: Samples, held: Mask) -> FloatArray:
    return samples.roofline_s[held]


def _constant_efficiency(samples: Samples, held: Mask) -> FloatArray:
    """The bound over one efficiency per class of operations, the median of the rows fitted on."""
    classes = np.asarray([int(kernel.op) for kernel in samples.features])
    ratio = samples.time_s / samples.roofline_s
    factor = {code: np.median(ratio[~held & (classes == code)]) for code in np.unique(classes)}
    return np.asarray(samples.roofline_s[held] * np.asarray([factor[code] for code in classes[held]]))


MODELS: Mapping[str, Predict] = {
    "roofline": _roofline,
    "roofline, one efficiency per class": _constant_efficiency,
    "ops only, Conv1D": _text(Scheme.OPS),
    "ops + operands, Conv1D (the paper's best)": _text(Scheme.OPERANDS),
    "ops + operands, mean of embeddings": _text(Scheme.OPERANDS, kind="bag"),
    "ops + operands, LSTM": _text(Scheme.OPERANDS, kind="lstm"),
    "numeric-aware tokens, Conv1D": _text(Scheme.NUMERIC),
    "ops + operands, Conv1D, residual over roofline": _text(Scheme.OPERANDS, residual=True),
    "numeric-aware tokens, Conv1D, residual over roofline": _text(Scheme.NUMERIC, residual=True),
    "parsed features, LightGBM": _trees(residual=False),
    "parsed features, LightGBM, residual over roofline": _trees(residual=True),
}


def errors(predicted_s: FloatArray, measured_s: FloatArray) -> tuple[float, float]:
    """MAPE, and the error weighted by time (WAPE)."""
    off = np.abs(predicted_s - measured_s)
    return float(np.mean(off / measured_s)), float(off.sum() / measured_s.sum())


def report(samples: Samples) -> str:
    """The page."""
    held = splits(samples)
    lines = [
        "# Reading MLIR as language, and reading numbers off it",
        "",
        "Generated by `make text-models`; do not edit. Mean absolute error relative to the measured time (MAPE), and "
        "the error weighted by time (WAPE), both on rows held out.",
        "",
        f"{len(samples.time_s):,} kernels of {_LEAST_US:.0f} us and more on {len(np.unique(samples.names))} GPUs: "
        f"{_counts(samples)}. A fixed sample of the published tables "
        f"({', '.join(_SOURCES)}), the same number from each GPU where there are as many. "
        f"One seed per model, {EPOCHS} epochs of the networks.",
        "",
        "| model | " + " | ".join(f"{name}: MAPE / WAPE %" for name in held) + " |",
        "|---|" + "---:|" * len(held),
    ]
    mapes: dict[tuple[str, str], float] = {}
    for title, predict in MODELS.items():
        cells = []
        for name, mask in held.items():
            mape, wape = errors(predict(samples, mask), samples.time_s[mask])
            mapes[title, name] = mape
            cells.append(f"{100 * mape:.1f} / {100 * wape:.1f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", *_reading(samples, held, mapes), ""]
    return "\n".join(lines)


def _counts(samples: Samples) -> str:
    classes = [kernel.op.name.lower().replace("_", " ") for kernel in samples.features]
    named = ["bandwidth-bound" if name == "memory" else name for name in classes]
    return ", ".join(f"{named.count(name):,} {name}" for name in dict.fromkeys(named))


def _reading(samples: Samples, held: Mapping[str, Mask], mapes: Mapping[tuple[str, str], float]) -> list[str]:
    sizes = ", ".join(f"{name} {int(mask.sum()):,} of {len(mask):,} rows" for name, mask in held.items())
    duels = ", ".join(
        f"{_best(mapes, name, 'Conv1D')} against {_best(mapes, name, 'LightGBM')} ({name})" for name in held
    )
    return [
        f"Held out: {sizes}; *unseen shapes* holds out whole weight shapes (GEMM n and k, attention heads and width, "
        f"row widths), *unseen GPU* the {_HELD_OUT_GPU}.",
        "",
        "The schemes *ops only* and *ops + operands* and the three networks follow Das & Mannarswamy "
        "(arXiv:2302.11405) as its abstract and public summaries describe them; the sizes of the layers are ours, and "
        "unlike the paper's targets a time spans five orders of magnitude. *Numeric-aware* tokens write an extent as "
        "its power of two and eighths of it. *Residual over roofline* predicts the logarithm of measured over bound, "
        "the bound being read off the same text. *Parsed features* are what `costmodels/kernels/mlir/features.py` "
        "reads: work, bytes, extents, a histogram of operations. Every model also sees the device's rates.",
        "",
        "No network is shipped and no price rests on one. Their best MAPE against the trees' best, in per cent: "
        f"{duels}. What makes a network usable is what the trees have anyway, numbers that are read as numbers and the "
        "bound that follows from them. The texts stay, as the identity of kernels and the source of those numbers.",
    ]


def _best(mapes: Mapping[tuple[str, str], float], split: str, word: str) -> str:
    """Lowest MAPE in per cent of the models with a word in their title."""
    return f"{100 * min(mape for (title, name), mape in mapes.items() if name == split and word in title):.1f}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the folder timings")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    started_s = time.monotonic()
    page = report(load(arguments.data / "timings"))
    arguments.out.write_text(page, encoding="utf-8")
    print(f"{arguments.out} in {time.monotonic() - started_s:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
