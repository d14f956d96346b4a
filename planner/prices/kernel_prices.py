"""Prices of single kernels read from MLIR text: what a user's own program costs on a device."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.kernels.calls import Basis, KernelCostModel, KernelOp
from costmodels.kernels.mlir.features import KernelFeatures
from costmodels.kernels.mlir.key import kernel_key
from costmodels.kernels.mlir.parse import parse
from costmodels.kernels.mlir.price import price
from planner.prices.price_lists import kernel_model_of
from planner.schema_types import SCHEMA_VERSION
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPrice:
    """One kernel of a text, priced.

    Attributes:
        features: What the text says about it.
        time_s, low_s, high_s: One run of it, with a 90 % interval, which has no end where the kernel is opaque.
        basis: What the price rests on.
        extrapolated: Whether it lies outside what the price was fitted on.
        opaque: Whether it holds a custom call that nobody timed, of which only operands and results are counted: a
            lower bound, for what it computes is not known.
    """

    features: KernelFeatures
    time_s: float
    low_s: float
    high_s: float
    basis: Basis
    extrapolated: bool
    opaque: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedText:
    """All kernels of a text on one device, run one after the other.

    Attributes:
        key: Of the canonical text (``costmodels.kernels.mlir.key``).
        device: Canonical name.
        kernels: In the order of the text.
        time_s, low_s, high_s: Sums over kernels and their counts. The interval assumes that errors go
            together, the widest case.
    """

    key: str
    device: str
    kernels: tuple[KernelPrice, ...]
    time_s: float
    low_s: float
    high_s: float

    def to_document(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "price",
            "key": self.key,
            "device": self.device,
            "time_s": self.time_s,
            "interval_s": _interval(self.low_s, self.high_s),
            "kernels": [_kernel_document(kernel) for kernel in self.kernels],
        }


def price_mlir(text: str, *, device: str | DeviceSpec, kernels: KernelCostModel | None = None) -> PricedText:
    """Price every kernel of an MLIR text on a device.

    Args:
        text: StableHLO as JAX lowers it, the ``torch`` dialect, linalg on tensors, IREE's flow dispatches,
            or our own canonical text.
        device: Name in the catalogue, or a ``DeviceSpec``.
        kernels: Prices kernel calls; if not given, those of every plan: what was measured on the device first.

    Raises:
        SpecError: If the text cannot be read, or the device cannot run it.
    """
    if not isinstance(text, str):
        raise SpecError("mlir", f"must be text; got {type(text).__name__}")
    if not isinstance(device, str | DeviceSpec):
        raise SpecError("device", f"must be a name or a DeviceSpec; got {type(device).__name__}", "for example H100")
    spec = device if isinstance(device, DeviceSpec) else default_catalog().device(device, field="device")
    found = parse(text)
    priced = price(found, kernels or kernel_model_of(spec), spec)
    count = np.asarray([kernel.count for kernel in found])
    calls = np.asarray([kernel.op is KernelOp.MEMORY and "custom_call" in kernel.histogram for kernel in found])
    opaque = calls.astype(np.bool_) & (priced.basis > Basis.MEASURED)
    high_s = np.where(opaque, np.inf, priced.high_s)
    return PricedText(
        key=kernel_key(text),
        device=spec.name,
        kernels=tuple(
            KernelPrice(
                features=kernel,
                time_s=float(priced.time_s[row]),
                low_s=float(priced.low_s[row]),
                high_s=float(high_s[row]),
                basis=Basis(int(priced.basis[row])),
                extrapolated=bool(priced.extrapolated[row]),
                opaque=bool(opaque[row]),
            )
            for row, kernel in enumerate(found)
        ),
        time_s=float(priced.time_s @ count),
        low_s=float(priced.low_s @ count),
        high_s=float(high_s @ count),
    )


def _interval(low_s: float, high_s: float) -> list[float | None]:
    """Both ends, the upper one null where there is none."""
    return [low_s, high_s if high_s < float("inf") else None]


def _kernel_document(price: KernelPrice) -> dict[str, Any]:
    kernel = price.features
    memory = kernel.op is KernelOp.MEMORY
    return {
        "name": kernel.name,
        "operation": kernel.op.name.lower(),
        "family": kernel.family.name.lower() if memory else None,
        "format": kernel.format or None,
        "batch": kernel.batch,
        "m": kernel.m,
        "n": kernel.n,
        "k": kernel.k or None,
        "heads": kernel.heads or None,
        "kv_heads": kernel.kv_heads or None,
        "causal": kernel.causal or None,
        "flops": kernel.matrix_flops + kernel.pointwise_flops,
        "bytes": kernel.bytes,
        "operations": dict(kernel.histogram),
        "count": kernel.count,
        "time_s": price.time_s,
        "interval_s": _interval(price.low_s, price.high_s),
        "basis": price.basis.name.lower(),
        "extrapolated": price.extrapolated,
        "opaque": price.opaque,
    }
