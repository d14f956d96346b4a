"""What a catalogue file may say, and how it becomes a spec.

The YAML speaks vendor units (TFLOP/s, GiB, GB/s, us), the specs SI; the conversion happens here and
nowhere else. Vendors write "80 GB" for device memory that is 80 GiB, so memory is in GiB.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from profiles.errors import SpecError, did_you_mean, meant_among
from profiles.hardware import MAX_DEVICES, MAX_DEVICES_PER_NODE, DeviceSpec, LinkSpec, NodeSpec, check_role, links_of
from profiles.precision import GemmFormat
from profiles.pydantic_words import hint_of, problem_of
from profiles.units import GIB, GIGA, MIB, MICROSECOND, TERA

LinkKind = Literal[
    "nvlink", "c2c", "xgmi", "pcie", "infiniband", "roce", "efa", "omnipath", "slingshot", "ethernet"
]  # fmt: skip

# The numbers of a device; each must have a source.
DEVICE_NUMBERS = (
    "peak_flops_per_s", "memory_bytes", "usable_memory_bytes", "memory_bandwidth_bytes_per_s",
    "num_sms", "l2_bytes", "power_w",
)  # fmt: skip
_ENTRY_FIELD_OF = {
    "peak_flops_per_s": "peak_tflops",
    "memory_bytes": "memory_gib",
    "usable_memory_bytes": "usable_memory_gib",
    "memory_bandwidth_bytes_per_s": "memory_bandwidth_gb_per_s",
    "num_sms": "num_sms",
    "l2_bytes": "l2_mib",
    "power_w": "power_w",
    "training_time_scale": "training_time_scale",
    "clock_headroom": "clock_headroom",
}
DEFAULT_SOURCE = "default"

EntryT = TypeVar("EntryT", bound=BaseModel)


def _is_whole(kind: Any) -> bool:
    """Whether a field holds a whole number, or one or null; YAML reads ``1e6`` as text, so others may be written so."""
    return any(part is int or (get_args(part) or (None,))[0] is int for part in (kind, *get_args(kind)))


class Entry(BaseModel):
    """Base of what a file may say: no unknown keys, no yes or no for a number and no text for a whole one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        """The value; YAML reads ``yes`` and ``on`` as true, which pydantic would take for 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise PydanticCustomError("flag", "must not be true or false")
        if isinstance(value, str) and _is_whole(kind):
            raise PydanticCustomError("text", "must be a whole number, not text")
        return value


class DeviceEntry(Entry):
    """One device of ``devices/*.yaml``; ``sources`` names a document per field, or ``default`` for the rest."""

    vendor: str = Field(min_length=1, max_length=40)
    architecture: str = Field(min_length=1, max_length=40)
    form_factor: str = Field(default="", max_length=20)
    aliases: tuple[str, ...] = ()
    peak_tflops: dict[GemmFormat, float] = Field(min_length=1)
    memory_gib: float = Field(gt=0, le=1 << 20)
    usable_memory_gib: float = Field(gt=0, le=1 << 20)
    memory_bandwidth_gb_per_s: float = Field(gt=0, le=1e6)
    num_sms: int = Field(gt=0, le=100_000)
    l2_mib: float = Field(gt=0, le=1e6)
    power_w: float = Field(gt=0, le=1e5)
    default_node: str = ""
    training_time_scale: float = Field(default=1.0, gt=0, le=1e3)
    clock_headroom: float = Field(default=1.0, ge=1, le=10)
    sources: dict[str, str] = Field(default_factory=dict)

    def to_spec(self, name: str, *, file: str) -> DeviceSpec:
        """The device in SI units."""
        where = f"{file}:{name}"
        if self.usable_memory_gib > self.memory_gib:
            problem = f"must not exceed memory_gib={self.memory_gib:g}; got {self.usable_memory_gib:g}"
            raise SpecError(f"{where}.usable_memory_gib", problem)
        if any(peak <= 0 for peak in self.peak_tflops.values()):
            raise SpecError(f"{where}.peak_tflops", "every peak must be positive", "leave an unsupported format out")
        unknown = set(self.sources) - set(_ENTRY_FIELD_OF.values()) - {DEFAULT_SOURCE}
        if unknown:
            word = min(unknown)
            hint = meant_among(word, [*_ENTRY_FIELD_OF.values(), DEFAULT_SOURCE])
            raise SpecError(f"{where}.sources", f"unknown field {word[:40]!r}", hint)
        rest = self.sources.get(DEFAULT_SOURCE, f"unsourced, from {file}")
        said = {number: field for number, field in _ENTRY_FIELD_OF.items() if field in self.model_fields_set}
        return DeviceSpec(
            name=name,
            vendor=self.vendor,
            architecture=self.architecture,
            peak_flops_per_s={kind: peak * TERA for kind, peak in self.peak_tflops.items()},
            memory_bytes=self.memory_gib * GIB,
            usable_memory_bytes=self.usable_memory_gib * GIB,
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_gb_per_s * GIGA,
            num_sms=self.num_sms,
            l2_bytes=self.l2_mib * MIB,
            power_w=self.power_w,
            default_node=self.default_node,
            training_time_scale=self.training_time_scale,
            clock_headroom=self.clock_headroom,
            sources={number: self.sources.get(field, rest) for number, field in said.items()},  # a default has none
        )


class LinkEntry(Entry):
    """One link of ``links.yaml``; bandwidth per direction, per device (scale-up) or per adapter (fabric)."""

    kind: LinkKind
    bandwidth_gb_per_s: float = Field(gt=0, le=1e5)
    latency_us: float = Field(gt=0, le=1e6)
    peer_to_peer: bool = True
    one_host: bool = False
    mesh_devices: int = Field(default=0, ge=0, le=MAX_DEVICES_PER_NODE)
    copied_share: float = Field(default=1.0, gt=0, le=1)
    aliases: tuple[str, ...] = ()
    source: str = ""
    latency_source: str = ""

    def to_spec(self, name: str, *, file: str) -> LinkSpec:
        """The link in SI units."""
        source = self.source or f"unsourced, from {file}"
        return LinkSpec(
            name=name,
            kind=self.kind,
            bandwidth_bytes_per_s=self.bandwidth_gb_per_s * GIGA,
            latency_s=self.latency_us * MICROSECOND,
            peer_to_peer=self.peer_to_peer,
            one_host=self.one_host,
            mesh_devices=self.mesh_devices,
            copied_share=self.copied_share,
            source=f"{source}; latency: {self.latency_source}" if self.latency_source else source,
        )


class NodeEntry(Entry):
    """One node of ``nodes.yaml``; ``domain_devices`` defaults to the devices of the node."""

    device: str
    devices_per_node: PositiveInt = Field(le=MAX_DEVICES_PER_NODE)
    domain_devices: PositiveInt | None = Field(default=None, le=MAX_DEVICES)
    scale_up: str
    nic: str
    nics_per_node: PositiveInt = Field(le=1024)
    host_link: str
    host_memory_gib: float = Field(gt=0, le=1 << 24)
    collective_rank_us: float = Field(default=0, ge=0, le=1e6)
    host_time_scale: float = Field(default=1, gt=0, le=1e3)
    sustained_16bit_time_scale: float = Field(default=0, ge=0, le=1e3)
    aliases: tuple[str, ...] = ()
    source: str = ""

    def to_spec(
        self, name: str, *, file: str, devices: Mapping[str, DeviceSpec], links: Mapping[str, LinkSpec]
    ) -> NodeSpec:
        """The node, its device and links looked up by canonical name."""
        where = f"{file}:{name}"

        def link(field: str, role: str) -> LinkSpec:
            wanted: str = getattr(self, field)
            if wanted not in links:
                hint = did_you_mean(wanted, links_of(role, links))
                raise SpecError(f"{where}.{field}", f"unknown link {wanted[:60]!r}", hint)
            return check_role(links[wanted], role, links, field=f"{where}.{field}")

        if self.device not in devices:
            hint = did_you_mean(self.device, devices)
            raise SpecError(f"{where}.device", f"unknown device {self.device[:60]!r}", hint)
        domain = self.domain_devices or self.devices_per_node
        if domain % self.devices_per_node:
            problem = f"must be a multiple of devices_per_node={self.devices_per_node}; got {domain}"
            raise SpecError(f"{where}.domain_devices", problem)
        return NodeSpec(
            name=name,
            device=devices[self.device],
            devices_per_node=self.devices_per_node,
            scale_up=link("scale_up", "scale_up"),
            domain_devices=domain,
            nic=link("nic", "fabric"),
            nics_per_node=self.nics_per_node,
            host_link=link("host_link", "host_link"),
            host_memory_bytes=self.host_memory_gib * GIB,
            collective_rank_s=self.collective_rank_us * MICROSECOND,
            host_time_scale=self.host_time_scale,
            sustained_16bit_time_scale=self.sustained_16bit_time_scale,
            source=self.source or f"unsourced, from {file}",
        )


def validated(entry_type: type[EntryT], data: Any, *, where: str) -> EntryT:
    """``data`` checked against an entry type.

    Args:
        entry_type: A pydantic model with ``extra="forbid"``.
        data: What the YAML (or the caller's mapping) holds.
        where: Prefix of the field in errors, e.g. ``devices/mine.yaml:H100-SXM-80GB``.

    Raises:
        SpecError: Naming the first offending field.
    """
    if not isinstance(data, Mapping):
        raise SpecError(where, f"must be a mapping of fields; got {type(data).__name__}")
    try:
        return entry_type.model_validate(data)
    except ValidationError as error:
        first = _first(error)
        path = ".".join(str(part)[:60] for part in first["loc"])
        field = f"{where}.{path}" if path else where
        if first["type"] == "extra_forbidden":
            hint = meant_among(str(first["loc"][-1]), _entry_at(entry_type, first["loc"][:-1]).model_fields)
            raise SpecError(field, "unknown field", hint) from None
        raise SpecError(field, problem_of(first), hint_of(first)) from None


def _first(error: ValidationError) -> ErrorDetails:
    """What is told of several problems: of a field that lacks, the unknown one beside it, which may be it misspelt."""
    first, *others = error.errors(include_url=False)
    if first["type"] == "missing":
        unknown = (other for other in others if other["type"] == "extra_forbidden")
        return next((other for other in unknown if other["loc"][:-1] == first["loc"][:-1]), first)
    return first


def _entry_at(entry_type: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The entry type at that place of an entry; keys of mappings and indices of lists lead nowhere else."""
    for part in path:
        if part in entry_type.model_fields:
            entry_type = _entry_in(entry_type.model_fields[str(part)].annotation) or entry_type
    return entry_type


def _entry_in(annotation: Any) -> type[BaseModel] | None:
    """The entry type that a field holds, by itself or in a list, mapping or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _entry_in(part)) is not None), None)
