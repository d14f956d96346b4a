"""Learned kernel prices: boosted trees correct a roofline, and say how far they can be trusted.

Which question it answers: how long does one kernel run, given every measurement of kernels like it? Per
operation class, time = reference roofline x exp(trees(features)). The reference has a handful of physical parameters of
each device and format (what share of the peaks is reached, from what depth, the launch), so that it extrapolates
to larger work; the trees correct what shapes have in common on all devices. A device that was never measured gets
the parameters of its relatives or of all devices pooled, and a share of what the trees say.

Trust, per call, by where it lies: ``measured`` (device and format were fitted, shape inside the fitted ranges),
``beyond`` (device was, shape lies outside), ``related`` (another device with the same chip was), ``foreign``
(neither), ``unmet`` (nobody timed such a kernel on any device). Each situation has its own spread and its own share of
the trees in a geometric mean with the reference, both found by holding out what the situation lacks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.additive import ADDITIVE, COEFFICIENTS, DEVICES, added_s, finest_groups, floor_s, unmet
from costmodels.kernels.booster import Booster
from costmodels.kernels.calls import (
    Basis,
    FloatArray,
    IntArray,
    KernelCallBatch,
    KernelCostModel,
    KernelOp,
    Prediction,
    take,
)
from costmodels.kernels.device_features import GENERATIONS, device_format
from costmodels.kernels.device_reference import BARE, Situation, device_reference
from costmodels.kernels.features import FEATURES, features_of, op_classes
from costmodels.kernels.implementations import REPLAYED, Engine, Library, engine_of, is_bare, library_of, one_by_one
from costmodels.kernels.memory_work import memory_work
from costmodels.kernels.roofline import FORMAT_CLASS, FORMULAS, Rates
from costmodels.kernels.sheet_bound import product_floor_s
from profiles.fits import KernelFits
from profiles.hardware import DeviceSpec
from profiles.learned import LearnedCard, LearnedFile
from profiles.precision import GEMM_FORMATS

# Of products that unpack weights, which are priced as those of 16-bit weights but for what they read: ends of the
# interval. So many times their price do TensorRT-LLM's of 4 and 8 bits take on an A100, of weights of more than 16M
# elements, at the 5th and the 95th percentile (aiconfigurator, less the launch of ``costmodels.tables.rows``).
PACKED_SPREAD = (0.88, 1.94)
_ROUNDING = 1e-5  # the card writes the ends of a range with six digits
_EVEN = 64.0  # elements; a weight whose rows are no multiple of it is odd
ANY_GROUP = "*"  # name of the spread of kernels whose group has none of its own
GROUPED_ALONE = "grouped_alone"  # products of experts by PyTorch's kernel
FORMULA_OF: Mapping[str, str] = {
    "attention_decode": "attention_forward",
    "gemm_fp32": "gemm",
    GROUPED_ALONE: "grouped_gemm",
}


_SPREAD_NAMES = tuple(situation.name.lower() for situation in Situation)


_SEQUENCES = ("attention_forward", "attention_backward")
_PRODUCTS = ("gemm", "gemm_fp32", "grouped_gemm", GROUPED_ALONE)
BLOCK_SCALED = "-block"  # behind fp8 with a scale per block
_COARSE_BLOCK = 128  # elements per scale of DeepSeek-V3's recipe, whose kernels rescale between steps of k


def format_classes(calls: KernelCallBatch) -> NDArray[np.str_]:
    """(C,) format class of each call as the fits name it; empty for bandwidth-bound work.

    Block-scaled fp8 is apart, and so are narrow products that do not quantise their input.
    """
    names = np.array([FORMAT_CLASS[name] for name in GEMM_FORMATS], dtype="<U16")[calls.gemm_format]
    names[(names == "fp8") & (calls.scale_block >= _COARSE_BLOCK)] = "fp8" + BLOCK_SCALED
    bare = is_bare(calls)
    names[bare] = np.char.add(names[bare], BARE)
    names[calls.op == int(KernelOp.MEMORY)] = ""
    return names


def spread_groups(op_class: str, calls: KernelCallBatch) -> NDArray[np.str_]:
    """(C,) group of each call that may have a spread of its own.

    Its format class; with it the library, where that counts, or whether a row of the weights ends within a cache line
    or two of them, where libraries have fewer kernels to choose from.
    """
    groups = format_classes(calls)
    if op_class in ADDITIVE:
        libraries = np.array([library.name.lower() for library in Library])[library_of(calls.implementation)]
        return np.char.add(np.char.add(groups, "/"), libraries)
    odd = (np.mod(calls.n, _EVEN) > 0) | (np.mod(calls.k, _EVEN) > 0)
    return np.char.add(groups, np.where(odd, "/odd", ""))


def formula_s(op_class: str, calls: KernelCallBatch, device: DeviceSpec, parameters: Mapping[str, float]) -> FloatArray:
    """(C,) seconds by the roofline formula of an operation class, for calls of one format.

    Raises:
        SpecError: If the device cannot multiply in the format.
    """
    rates = Rates.of(device, 1.0 if op_class == "memory" else device.peak(GEMM_FORMATS[calls.gemm_format[0]]))
    return FORMULAS[FORMULA_OF.get(op_class, op_class)](calls, parameters, rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpModel:
    """The trees of one operation class with their card."""

    card: LearnedCard
    booster: Booster

    @classmethod
    def of(cls, file: LearnedFile) -> "OpModel":
        """The model of a file.

        Raises:
            ValueError: If the text is no LightGBM model, or one of other features.
        """
        booster = Booster(file.text)
        if booster.num_features != len(file.card.features):
            raise ValueError(f"{file.card.op_class}: the card names {len(file.card.features)} features")
        return cls(card=file.card, booster=booster)

    def knows(self, calls: KernelCallBatch, device: DeviceSpec) -> NDArray[np.bool_]:
        """(C,) whether the format of each call was fitted; of PyTorch's experts, on the device's generation.

        Other strangers are priced too, by what all devices have in common, and so are products that quantise nothing
        where only such were timed that do: they share what multiplies them.
        """
        known = list(self.card.ranges)
        if self.card.op_class == GROUPED_ALONE:
            place, own = self.card.features.index("generation"), device_format(calls, device).generation
            known = [
                name for name in known if self.card.ranges[name][place][0] <= own <= self.card.ranges[name][place][1]
            ]
        return np.isin(format_classes(calls), [*known, *(name + BARE for name in known)])

    def features(self, calls: KernelCallBatch, device: DeviceSpec) -> FloatArray:
        """(C, F) features in the order of the card."""
        found = features_of(self.card.op_class, calls, device)
        return np.stack([found[name] for name in self.card.features], axis=1)

    def fitted(self, format_class: str, features: FloatArray) -> NDArray[np.bool_]:
        """(C,) whether all features of calls of a format lie where calls of it were fitted."""
        low, high = np.array(self.card.ranges[format_class]).T
        slack = _ROUNDING * np.maximum(np.abs(low), np.abs(high))
        return np.asarray(((features >= low - slack) & (features <= high + slack)).all(axis=1))

    def price(
        self, calls: KernelCallBatch, device: DeviceSpec, families: Mapping[str, str]
    ) -> tuple[FloatArray, IntArray]:
        """(C,) seconds by reference and a share of the trees, and the ``Situation`` of each call."""
        features = self.features(calls, device)
        correction = self.booster.predict(features)
        base, situations = np.empty(len(calls)), np.empty(len(calls), dtype=np.int64)
        classes = format_classes(calls)
        for name in np.unique(classes):
            rows = np.flatnonzero(classes == name)
            parameters, situation = device_reference(self.card.reference, str(name), device, families)
            base[rows] = formula_s(self.card.op_class, take(calls, rows), device, parameters)
            situations[rows] = int(situation)
            if situation is Situation.MEASURED:
                situations[rows[~self.fitted(str(name), features[rows])]] = int(Situation.BEYOND)
        return np.asarray(base * np.exp(correction * self.share(situations)), dtype=np.float64), situations

    def interval(
        self, calls: KernelCallBatch, time_s: FloatArray, situations: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """(C,) both ends of the 90 % interval."""
        low, high = np.empty(len(time_s)), np.empty(len(time_s))
        names, group = np.unique(spread_groups(self.card.op_class, calls), return_inverse=True)
        for code, number in sorted(set(zip(situations.tolist(), group.tolist(), strict=True))):
            rows = (situations == code) & (group == number)
            spreads = self.card.spread[_SPREAD_NAMES[code]]
            spread = spreads.get(str(names[number]), spreads[ANY_GROUP])
            place = np.searchsorted(spread.up_to_s, time_s[rows])
            low[rows] = time_s[rows] * np.array(spread.low_factor)[place]
            high[rows] = time_s[rows] * np.array(spread.high_factor)[place]
        return low, high

    def share(self, situations: IntArray) -> FloatArray:
        """Share of the trees' correction that calls in those situations get."""
        return np.array([self.card.blend[name] for name in _SPREAD_NAMES])[situations]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditiveModel(OpModel):
    """Reference by added terms, trees on what is left; the card's ``reference`` holds coefficients by group."""

    def knows(self, calls: KernelCallBatch, device: DeviceSpec) -> NDArray[np.bool_]:
        """(C,) whether the format of each call was fitted, and with it the kernels that it stands for.

        Attention of sequences and bandwidth-bound work are known where it is said who runs them; attention on AMD's is,
        since it has one library. What PyTorch runs was timed on Hopper: on another generation it has a calibrated
        roofline, whose rates are of that generation.
        """
        fitted = np.isin(format_classes(calls), list(self.card.ranges))
        if self.card.op_class not in (*_SEQUENCES, "memory"):
            return fitted
        said = calls.implementation > 0
        if self.card.op_class in _SEQUENCES and device.vendor == "amd":
            said = np.ones(len(calls), dtype=np.bool_)
        fitted &= said
        ours = (calls.implementation == 0) | (engine_of(calls.implementation) == int(Engine.PYTORCH))
        asked = np.flatnonzero(fitted & ours)
        if len(asked):
            finest = finest_groups(self.card.op_class, take(calls, asked), device)
            fitted[asked] = np.isin(finest, list(self.card.reference[COEFFICIENTS]))
        return fitted

    def price(
        self, calls: KernelCallBatch, device: DeviceSpec, families: Mapping[str, str]
    ) -> tuple[FloatArray, IntArray]:
        """(C,) seconds, and the ``Situation`` of each call; where the groups are foreign, only a share of the trees."""
        del families  # relatives are those of the same generation, which the groups name
        base, steps = added_s(self.card.op_class, calls, device, self.card.reference)
        features = self.features(calls, device)
        # The groups of an architecture that nothing is known of are those of the nearest one, which is another.
        kin = (steps == 0) & (device.architecture in GENERATIONS)
        situations = np.where(kin, int(Situation.RELATED), int(Situation.FOREIGN))
        situations[unmet(self.card.op_class, steps)] = int(Situation.UNMET)
        classes = format_classes(calls)
        for name in np.unique(classes):
            if device.name not in self.card.reference[DEVICES][str(name)]:
                continue
            mine = np.flatnonzero((classes == name) & (steps == 0))
            inside = self.fitted(str(name), features[mine])
            situations[mine] = np.where(inside, int(Situation.MEASURED), int(Situation.BEYOND))
        correction = self.booster.predict(features) * self.share(situations)
        seconds = np.maximum(base * np.exp(correction), floor_s(self.card.op_class, calls, device))
        return np.asarray(seconds, dtype=np.float64), situations


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedKernelModel:
    """Prices kernels by learned models where there are any, and by the calibrated roofline elsewhere.

    Attributes:
        models: By operation class.
        roofline: Prices what no model knows.
        families: Device to family, of devices that share a chip.
    """

    models: Mapping[str, OpModel]
    roofline: KernelCostModel
    families: Mapping[str, str]

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        """Seconds for each call on one device; the price of a call does not depend on its company.

        Raises:
            SpecError: If the device cannot multiply in a format that a call asks for.
        """
        calls, times = one_by_one(calls)
        calls = self._as_timed(calls, device)
        found = self.roofline.predict(self._as_run(calls, device), device).table()
        classes = op_classes(calls)
        for op_class, model in self.models.items():
            rows = np.flatnonzero((classes == op_class) & (calls.flops + calls.bytes > 0))
            rows = rows[model.knows(take(calls, rows), device)]
            if not len(rows):
                continue
            part = take(calls, rows)
            time_s, situations = model.price(part, device, self.families)
            low_s, high_s = model.interval(part, time_s, situations)
            borrowed = situations >= Situation.FOREIGN
            found[0, rows], found[1, rows], found[2, rows] = time_s, low_s, high_s
            found[3, rows] = np.where(borrowed, found[3, rows], int(Basis.LEARNED))
            found[4, rows] = (situations == Situation.BEYOND) | (borrowed & (found[4, rows] > 0))
        found[:3] = np.maximum(found[:3], product_floor_s(calls, device, timed=self.timed(device)))
        packed = calls.packed_bytes > 0
        found[1, packed] = np.minimum(found[1, packed], found[0, packed] * PACKED_SPREAD[0])
        found[2, packed] = np.maximum(found[2, packed], found[0, packed] * PACKED_SPREAD[1])
        found[3, packed] = np.maximum(found[3, packed], int(Basis.ANALYTIC))
        found[:3] *= times
        return Prediction.of(found)

    def timed(self, device: DeviceSpec) -> bool:
        """Whether a device's own products were fitted, in any format."""
        known = [model.card.reference[DEVICES] for name, model in self.models.items() if name in _PRODUCTS]
        return any(device.name in rows for classes in known for rows in classes.values())

    def _as_run(self, calls: KernelCallBatch, device: DeviceSpec) -> KernelCallBatch:
        """Calls, PyTorch's bandwidth-bound ones that no model knows here with the kernels and traffic of its code.

        The roofline takes a call at its word, and one of a library names each operand once.
        """
        of_pytorch = engine_of(calls.implementation) == int(Engine.PYTORCH)
        rows = np.flatnonzero((calls.op == int(KernelOp.MEMORY)) & of_pytorch & (calls.bytes > 0))
        if len(rows) and "memory" in self.models:
            rows = rows[~self.models["memory"].knows(take(calls, rows), device)]
        if not len(rows):
            return calls
        work = memory_work(take(calls, rows))
        batch, moved = calls.batch.copy(), calls.bytes.copy()
        batch[rows], moved[rows] = work.kernels, work.least_bytes + work.between_bytes
        return replace(calls, batch=batch, bytes=moved)

    def _as_timed(self, calls: KernelCallBatch, device: DeviceSpec) -> KernelCallBatch:
        """Calls, those of PyTorch's kernel for experts as nobody's in particular where its generation was not timed.

        torch._grouped_mm has one of CUTLASS for compute capabilities 9 and 10 and a loop elsewhere
        (pytorch/pytorch, aten/src/ATen/native/cuda/GroupedBlas.cpp). Narrow ones, which quantise nothing, stay.
        """
        rows = np.flatnonzero((op_classes(calls) == GROUPED_ALONE) & ~is_bare(calls))
        if len(rows) and GROUPED_ALONE in self.models:
            rows = rows[~self.models[GROUPED_ALONE].knows(take(calls, rows), device)]
        if not len(rows):
            return calls
        implementation = calls.implementation.copy()
        implementation[rows] = implementation[rows] // REPLAYED * REPLAYED
        return replace(calls, implementation=implementation)


def learned_kernel_model(
    files: Mapping[str, LearnedFile], *, roofline: KernelCostModel, fits: KernelFits
) -> LearnedKernelModel:
    """The price list of some models' files; classes without features are left to the roofline.

    A device whose family was measured on another architecture is a stranger to the models, not a relative.
    """
    models = {
        name: (AdditiveModel if name in ADDITIVE else OpModel).of(file)
        for name, file in files.items()
        if name in FEATURES
    }
    families = {device: family for device, family in fits.families.items() if device not in fits.borrowed}
    return LearnedKernelModel(models=models, roofline=roofline, families=families)
