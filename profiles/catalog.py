"""The catalogue: devices, links, nodes and models as YAML, packaged and user-supplied.

A new GPU or model is a YAML file, never code. A user directory has the layout of ``profiles/data``
(``devices/*.yaml``, ``links.yaml``, ``nodes.yaml``, ``models/*.yaml``); its entries replace packaged
ones of the same name and add the rest. Directories come from the caller or, for the default
catalogue, from the environment variable ``PLANNER_CATALOG`` (a path list).
"""

import functools
import os
import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from profiles.bounded_files import read_bounded
from profiles.catalog_entries import DeviceEntry, LinkEntry, NodeEntry, validated
from profiles.device_names import DeviceNames, matching_devices
from profiles.errors import SpecError, did_you_mean, reason_of
from profiles.hardware import DeviceSpec, LinkSpec, NodeSpec, check_role, links_of

MAX_YAML_BYTES = 4 << 20
MAX_YAML_FILES = 2000
MAX_YAML_DEPTH = 32
MAX_YAML_NODES = 500_000
ENVIRONMENT_VARIABLE = "PLANNER_CATALOG"

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_SafeLoader):  # type: ignore[misc]
    """The safe loader, but a key given twice is an error rather than silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.value != "<<":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value[:60]!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEntry:
    """One named entry of a YAML file, unvalidated.

    Attributes:
        name: Its key.
        data: What the file holds under that key.
        file: The file, for error messages.
    """

    name: str
    data: Any
    file: str


def load_yaml(file: Traversable) -> Any:
    """The content of one YAML file (safe subset, no duplicate keys, size bounded).

    Raises:
        SpecError: If it cannot be read or parsed; the field is the file.
    """
    label = str(file)
    try:
        content = read_bounded(file, MAX_YAML_BYTES)
    except OSError as error:
        raise SpecError(label, f"cannot be read: {reason_of(error)}") from None
    try:
        _check_size(content)
        return yaml.load(content, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        words = getattr(error, "problem", None) or getattr(error, "reason", None)  # undecodable text has a reason
        reason = words or "a number that cannot be read"
        raise SpecError(label, f"is not valid YAML{place}: {reason}") from None


def _check_size(content: bytes) -> None:
    """Refuse what would exhaust the stack or the memory: deep nesting, aliases of aliases.

    Raises:
        yaml.YAMLError: Names the place.
    """
    depth, nodes = 0, 0  # nodes as if every alias were written out
    begun: list[tuple[str | None, int]] = []  # anchor of each open collection, and nodes before it
    sizes: dict[str, int] = {}
    event: Any
    for event in yaml.parse(content, Loader=_SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, nodes))
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            depth -= 1
            if anchor is not None:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(event.anchor or "", 0)
        nodes += 1
        if depth > MAX_YAML_DEPTH or nodes > MAX_YAML_NODES:
            what = f"deeper than {MAX_YAML_DEPTH}" if depth > MAX_YAML_DEPTH else f"more than {MAX_YAML_NODES} values"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)


def load_yaml_entries(file: Traversable) -> dict[str, RawEntry]:
    """The entries of a file whose top level is ``{name: {...}}``; an empty file has none.

    Raises:
        SpecError: If the file is unreadable or its top level is something else.
    """
    data = load_yaml(file)
    label = str(file)
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(name, str) and name for name in data):
        raise SpecError(label, "the top level must map names to entries", "quote names made of digits")
    return {name: RawEntry(name=name, data=entry, file=label) for name, entry in data.items()}


def load_yaml_directory(directory: Traversable) -> dict[str, RawEntry]:
    """The entries of every ``*.yaml`` file of a directory, in file-name order; none if it does not exist.

    Raises:
        SpecError: If a file is malformed, or a name occurs in two of them.
    """
    if not directory.is_dir():
        return {}
    found = sorted((file for file in directory.iterdir() if file.name.endswith((".yaml", ".yml"))), key=_file_name)
    if len(found) > MAX_YAML_FILES:
        raise SpecError(str(directory), f"at most {MAX_YAML_FILES} YAML files; got {len(found)}")
    entries: dict[str, RawEntry] = {}
    for file in found:
        for name, entry in load_yaml_entries(file).items():
            if name in entries:
                raise SpecError(f"{entry.file}:{name}", f"is already defined in {entries[name].file}")
            entries[name] = entry
    return entries


def _file_name(file: Traversable) -> str:
    return file.name


def _merged(layers: Iterable[Mapping[str, RawEntry]]) -> dict[str, RawEntry]:
    """Entries of all layers, the later replacing the earlier in place."""
    merged: dict[str, RawEntry] = {}
    for layer in layers:
        merged.update(layer)
    return merged


def _optional_file(directory: Traversable, name: str) -> dict[str, RawEntry]:
    file = directory / name
    return load_yaml_entries(file) if file.is_file() else {}


def _plain_key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that is known by name.

    Attributes:
        devices: Canonical name to device, the one to assume for an ambiguous name first.
        links: Canonical name to link.
        nodes: Canonical name to node.
        directories: Where the entries come from, packaged data first.
    """

    devices: Mapping[str, DeviceSpec]
    links: Mapping[str, LinkSpec]
    nodes: Mapping[str, NodeSpec]
    directories: tuple[Traversable, ...] = field(repr=False)
    _device_names: Mapping[str, DeviceNames] = field(repr=False)
    _link_keys: Mapping[str, str] = field(repr=False)
    _node_keys: Mapping[str, str] = field(repr=False)

    @classmethod
    def load(cls, extra_paths: Sequence[Path] = ()) -> "Catalog":
        """Read the packaged catalogue and the user directories, later ones winning.

        Raises:
            SpecError: If a directory does not exist or an entry is invalid; names the file and field.
        """
        for path in extra_paths:
            if not path.is_dir():
                raise SpecError("catalog", f"no such directory: {str(path)[:200]}")
        directories: tuple[Traversable, ...] = (files("profiles") / "data", *extra_paths)

        raw_devices = _merged(load_yaml_directory(directory / "devices") for directory in directories)
        devices: dict[str, DeviceSpec] = {}
        names: dict[str, DeviceNames] = {}
        for name, raw in raw_devices.items():
            entry = validated(DeviceEntry, raw.data, where=f"{raw.file}:{name}")
            devices[name] = entry.to_spec(name, file=raw.file)
            names[name] = DeviceNames.of(
                name, aliases=entry.aliases, form_factor=entry.form_factor, memory_gib=entry.memory_gib
            )
        _check_distinct(names, raw_devices)

        raw_links = _merged(_optional_file(directory, "links.yaml") for directory in directories)
        link_entries = {n: validated(LinkEntry, raw.data, where=f"{raw.file}:{n}") for n, raw in raw_links.items()}
        links = {n: entry.to_spec(n, file=raw_links[n].file) for n, entry in link_entries.items()}

        raw_nodes = _merged(_optional_file(directory, "nodes.yaml") for directory in directories)
        node_entries = {n: validated(NodeEntry, raw.data, where=f"{raw.file}:{n}") for n, raw in raw_nodes.items()}
        nodes = {
            n: entry.to_spec(n, file=raw_nodes[n].file, devices=devices, links=links)
            for n, entry in node_entries.items()
        }
        for name, device in devices.items():
            _check_default_node(device, nodes, where=f"{raw_devices[name].file}:{name}.default_node")
        return cls(
            devices=devices,
            links=links,
            nodes=nodes,
            directories=directories,
            _device_names=names,
            _link_keys=_keys({n: entry.aliases for n, entry in link_entries.items()}),
            _node_keys=_keys({n: entry.aliases for n, entry in node_entries.items()}),
        )

    def device(self, name: str, *, field: str = "cluster.device") -> DeviceSpec:
        """The device that name means; an ambiguous one means the first match (see ``device_matches``).

        Raises:
            SpecError: If the name is unknown.
        """
        return self.device_matches(name, field=field)[0]

    def device_matches(self, name: str, *, field: str = "cluster.device") -> tuple[DeviceSpec, ...]:
        """Every device the name can mean, the one to assume first.

        Raises:
            SpecError: If it can mean none.
        """
        return tuple(self.devices[match] for match in matching_devices(name, self._device_names, field=field))

    def link(self, name: str, *, field: str = "cluster.fabric", role: str | None = None) -> LinkSpec:
        """The link of that name or alias, case-insensitively.

        Args:
            name: The name.
            field: What errors name.
            role: Where it is to stand (see ``hardware.LINK_ROLES``); anywhere if None.

        Raises:
            SpecError: If the name is unknown, or its link cannot stand there.
        """
        key = _plain_key(name[:200])
        if key not in self._link_keys:
            raise SpecError(field, f"unknown link {name[:60]!r}", did_you_mean(key, links_of(role, self.links)))
        return check_role(self.links[self._link_keys[key]], role, self.links, field=field)

    def node(self, name: str) -> NodeSpec:
        """The node of that name or alias, case-insensitively.

        Raises:
            SpecError: If the name is unknown.
        """
        key = _plain_key(name[:200])
        if key not in self._node_keys:
            raise SpecError("cluster.node", f"unknown node {name[:60]!r}", did_you_mean(key, self.nodes))
        return self.nodes[self._node_keys[key]]

    @functools.cached_property
    def model_entries(self) -> Mapping[str, dict[str, Any]]:
        """Raw entries of ``models/*.yaml`` by name; read on first use, interpreted elsewhere.

        Raises:
            SpecError: If a file is malformed or an entry is not a mapping.
        """
        merged = _merged(load_yaml_directory(directory / "models") for directory in self.directories)
        for name, raw in merged.items():
            if not isinstance(raw.data, dict):
                raise SpecError(f"{raw.file}:{name}", f"must be a mapping of fields; got {type(raw.data).__name__}")
        return {name: raw.data for name, raw in merged.items()}


def _check_distinct(names: Mapping[str, DeviceNames], raw: Mapping[str, RawEntry]) -> None:
    """Refuse device names that no lookup could tell apart."""
    seen: dict[frozenset[str], str] = {}
    for name, known in names.items():
        words, where = known.spellings[0], f"{raw[name].file}:{name}"
        if not words - known.optional:
            raise SpecError(where, "the name has no distinctive word", "add a model number")
        if words in seen:
            raise SpecError(where, f"reads the same as {seen[words]!r}", "use exactly that name to replace it")
        seen[words] = name


def _check_default_node(device: DeviceSpec, nodes: Mapping[str, NodeSpec], *, where: str) -> None:
    wanted = device.default_node
    if wanted and wanted not in nodes:
        raise SpecError(where, f"unknown node {wanted[:60]!r}", did_you_mean(wanted, nodes))
    if wanted and nodes[wanted].device != device:
        raise SpecError(where, f"{wanted} holds {nodes[wanted].device.name}, not {device.name}")


def _keys(aliases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Lookup key to canonical name; a canonical name wins over another entry's alias."""
    keys = {_plain_key(alias): name for name, spellings in aliases.items() for alias in spellings}
    return keys | {_plain_key(name): name for name in aliases}


_default_lock = threading.Lock()


@functools.cache
def _load_default() -> Catalog:
    listed = os.environ.get(ENVIRONMENT_VARIABLE, "")
    return Catalog.load([Path(part).expanduser() for part in listed.split(os.pathsep) if part])


def default_catalog() -> Catalog:
    """The packaged catalogue plus the directories of ``PLANNER_CATALOG``; read once per process.

    Raises:
        SpecError: If a directory or an entry of it is invalid.
    """
    with _default_lock:
        return _load_default()
