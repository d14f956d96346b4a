"""What a mapping may say of a cluster: a YAML file, a REST body, or what an answer says of its question."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from profiles.catalog_entries import Entry
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES, MAX_DEVICES_PER_NODE, MAX_NODES

MAX_TEXT_LENGTH = 200
MAX_NICS_PER_NODE = 1024
MAX_GROUPS = 8
_TOLD = "as answers tell it"


def _printable(text: str | None) -> str | None:
    """A name, which is shown as it stands: no line breaks, nothing that steers a terminal."""
    if text is not None and not text.isprintable():
        raise PydanticCustomError("printable", "must hold printable characters alone")
    return text


_Name = Annotated[str | None, AfterValidator(_printable)]


class ClusterEntry(Entry):
    """A cluster of identical nodes; what is left out comes from the catalogue."""

    device: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TEXT_LENGTH,
        description="Device name, e.g. `H100`; may be left out when `node` is given.",
    )
    node: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TEXT_LENGTH,
        description="Node of the catalogue to start from, e.g. `p4d.24xlarge`; the usual one of the device if null.",
    )
    num_nodes: int = Field(default=1, ge=1, le=MAX_NODES, description="Hosts.")
    gpus_per_node: int | None = Field(
        default=None, ge=1, le=MAX_DEVICES_PER_NODE, description="Devices per host; those of the node if null."
    )
    domain_devices: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DEVICES,
        description="Devices that share the scale-up links; a multiple of `gpus_per_node`.",
    )
    scale_up: str | None = Field(
        default=None, max_length=MAX_TEXT_LENGTH, description="Link between devices of one domain, e.g. `nvlink4`."
    )
    fabric: str | None = Field(
        default=None, max_length=MAX_TEXT_LENGTH, description="Link of one network adapter, e.g. `ib-ndr-400`."
    )
    nics_per_node: int | None = Field(
        default=None, ge=1, le=MAX_NICS_PER_NODE, description="Network adapters per host."
    )
    host_link: str | None = Field(
        default=None, max_length=MAX_TEXT_LENGTH, description="Link between device and host memory, e.g. `pcie5`."
    )
    host_memory_gb: float | None = Field(default=None, gt=0, le=1e6, description="Memory per host in GB of 10^9 bytes.")
    disk_gb_per_s: float | None = Field(
        default=None, gt=0, le=1e4, description="What all devices of a host read from its disks, in GB/s; 6.5 if null."
    )
    name: _Name = Field(default=None, max_length=MAX_TEXT_LENGTH, description="How to call the cluster.")
    num_devices: int | None = Field(
        default=None, ge=1, le=MAX_DEVICES, description=f"Devices in all, {_TOLD}: what the other fields come to."
    )
    usable_memory_bytes: float | None = Field(
        default=None,
        gt=0,
        le=1e15,
        description=f"Memory of a device that may be used, {_TOLD}: all that can be, or less where some is left free.",
    )


class MixedClusterEntry(Entry):
    """A cluster of groups of identical nodes."""

    groups: tuple[dict[str, Any], ...] = Field(
        min_length=1, max_length=MAX_GROUPS, description="One mapping per group, each of the fields of a cluster."
    )
    between: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TEXT_LENGTH,
        description="Link of one network adapter between nodes of different groups; the slower of theirs if null.",
    )
    name: _Name = Field(default=None, max_length=MAX_TEXT_LENGTH, description="How to call the cluster.")
    num_devices: int | None = Field(
        default=None, ge=1, le=MAX_DEVICES, description=f"Devices in all, {_TOLD}: what the groups come to."
    )


def check_num_devices(said: int | None, found: int, *, hint: str) -> None:
    """Refuse a number of devices that is not what the other fields come to.

    Raises:
        SpecError: If it is another.
    """
    if said is not None and said != found:
        raise SpecError("cluster.num_devices", f"is {said}, and the other fields come to {found}", hint)
