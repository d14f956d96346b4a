"""Learned price models as files: LightGBM text beside a JSON card that says what it was fitted on.

``data/models_learned/{operation class}.txt`` and ``.json`` are written by ``make models``. This module loads
them and checks that the two belong together; ``costmodels.kernels.learned`` evaluates them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from profiles.bounded_files import read_bounded
from profiles.errors import SpecError

MAX_MODEL_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Measured over predicted time, as a function of the predicted time.

    Attributes:
        up_to_s: (B,) upper ends of the classes of predicted time; the last is infinite.
        low_factor: (B,) 5 % quantile of measured over predicted time.
        high_factor: (B,) 95 % quantile.
    """

    up_to_s: tuple[float, ...]
    low_factor: tuple[float, ...]
    high_factor: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedCard:
    """What a model of one operation class expects, what it was fitted on and how far it was off.

    Attributes:
        op_class: Operation class, e.g. ``gemm``.
        features: Names of the columns, in order.
        reference: By arithmetic and device: parameters of the roofline formula whose time the model corrects;
            under ``*`` those of all devices pooled. Under ``devices``, by format class: rows in the fit by device.
        ranges: By format class: lowest and highest value of each feature in the fit.
        spread: By situation and group of kernels, ``*`` for groups without one: see ``costmodels.kernels.learned``.
        blend: By situation: share of the learned model in the geometric mean with its reference.
        sha256: Of the model's text.
        fitted_on: Sources, rows, devices and date of the data, for people.
        errors: By split: errors on rows held out, for people.
    """

    op_class: str
    features: tuple[str, ...]
    reference: Mapping[str, Mapping[str, Mapping[str, float]]]
    ranges: Mapping[str, tuple[tuple[float, float], ...]]
    spread: Mapping[str, Mapping[str, Spread]]
    blend: Mapping[str, float]
    sha256: str
    fitted_on: Mapping[str, Any] = field(default_factory=dict, compare=False)
    errors: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFile:
    """A card and the text of its model."""

    card: LearnedCard
    text: str


def card_from(content: Mapping[str, Any]) -> LearnedCard:
    """A card from what its JSON holds.

    Raises:
        KeyError, TypeError, ValueError: If it is none.
    """
    return LearnedCard(
        op_class=content["op_class"],
        features=tuple(content["features"]),
        reference={
            name: {device: {k: float(v) for k, v in row.items()} for device, row in devices.items()}
            for name, devices in content["reference"].items()
        },
        ranges={name: tuple((float(a), float(b)) for a, b in rows) for name, rows in content["ranges"].items()},
        spread={
            name: {group: _spread(row) for group, row in groups.items()} for name, groups in content["spread"].items()
        },
        blend={name: float(value) for name, value in content["blend"].items()},
        sha256=content["sha256"],
        fitted_on=content.get("fitted_on", {}),
        errors=content.get("errors", {}),
    )


def _spread(row: Mapping[str, Any]) -> Spread:
    return Spread(
        up_to_s=(*(float(value) for value in row["up_to_s"]), float("inf")),
        low_factor=tuple(float(value) for value in row["low_factor"]),
        high_factor=tuple(float(value) for value in row["high_factor"]),
    )


def load_learned(folder: Traversable) -> dict[str, LearnedFile]:
    """Every model of a folder by operation class; none if the folder does not exist.

    Raises:
        SpecError: If a card cannot be read or does not belong to its text; the field is the file.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, LearnedFile] = {}
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if not file.name.endswith(".json"):
            continue
        model = folder.joinpath(file.name.removesuffix(".json") + ".txt")
        try:
            card = card_from(json.loads(_read(file)))
            text = _read(model)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(str(file), f"is no card of a learned model: {type(error).__name__}: {error}") from None
        if hashlib.sha256(text.encode()).hexdigest() != card.sha256:
            raise SpecError(str(model), "is not the model its card describes", "rebuild both with 'make models'")
        found[card.op_class] = LearnedFile(card=card, text=text)
    return found


def packaged_learned() -> dict[str, LearnedFile]:
    """The models that come with the package."""
    return load_learned(resources.files("profiles").joinpath("data", "models_learned"))


def _read(file: Traversable) -> str:
    return read_bounded(file, MAX_MODEL_BYTES).decode("utf-8")
