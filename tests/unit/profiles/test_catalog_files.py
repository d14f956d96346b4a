"""Catalogue files: user directories, precedence, caching, and what is said about bad files."""

import pickle
import threading
import time
from pathlib import Path

import pytest

import profiles.catalog as catalog_module
from profiles.catalog import Catalog, default_catalog, load_yaml_directory
from profiles.errors import SpecError

MINE = """
Mine-96GB:
  vendor: acme
  architecture: anvil
  peak_tflops: {fp32: 10, bf16: 100}
  memory_gib: 96
  usable_memory_gib: 95
  memory_bandwidth_gb_per_s: 2000
  num_sms: 64
  l2_mib: 40
  power_w: 400
"""


def user_directory(root: Path, **files: str) -> Path:
    """A catalogue directory; ``devices__mine`` becomes ``devices/mine.yaml``."""
    for name, content in files.items():
        file = root / (name.replace("__", "/") + ".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


# ---- user directories ---------------------------------------------------------------------------


def test_user_directory_extends_and_overrides(tmp_path: Path) -> None:
    user_directory(
        tmp_path,
        devices__mine=MINE,
        links="ib-ndr-400: {kind: infiniband, bandwidth_gb_per_s: 48, latency_us: 5}",
        nodes=(
            "dgx-h100: {device: H100-SXM-80GB, devices_per_node: 8, scale_up: nvlink4, nic: ib-ndr-400, "
            "nics_per_node: 4, host_link: pcie5, host_memory_gib: 1024}"
        ),
    )
    loaded = Catalog.load([tmp_path])
    assert loaded.device("mine").peak("bf16") == pytest.approx(100e12)
    assert loaded.device("mine").sources["power_w"] == f"unsourced, from {tmp_path / 'devices' / 'mine.yaml'}"
    assert loaded.nodes["dgx-h100"].scale_out_bytes_per_s == pytest.approx(24e9)
    assert loaded.nodes["hgx-h200"].nic.bandwidth_bytes_per_s == pytest.approx(48e9)
    assert loaded.device("H100").name == "H100-SXM-80GB"


def test_later_directories_win(tmp_path: Path) -> None:
    first = user_directory(tmp_path / "a", devices__x=MINE)
    second = user_directory(tmp_path / "b", devices__y=MINE.replace("bf16: 100", "bf16: 50"))
    assert Catalog.load([first, second]).device("Mine").peak("bf16") == pytest.approx(50e12)


def test_environment_variable_names_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_directory(tmp_path, devices__mine=MINE)
    monkeypatch.setenv("PLANNER_CATALOG", str(tmp_path))
    catalog_module._load_default.cache_clear()
    try:
        assert default_catalog().device("Mine").name == "Mine-96GB"
    finally:
        catalog_module._load_default.cache_clear()


def test_default_catalog_is_loaded_once_across_threads() -> None:
    catalog_module._load_default.cache_clear()
    found: list[Catalog] = []
    threads = [threading.Thread(target=lambda: found.append(default_catalog())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1


def test_loading_is_fast() -> None:
    best = min(_seconds_to_load() for _ in range(5))
    assert best < 0.06


def _seconds_to_load() -> float:
    start = time.process_time()
    Catalog.load()
    return time.process_time() - start


def test_specs_travel_between_processes() -> None:
    node = default_catalog().nodes["gb200-nvl72"]
    assert pickle.loads(pickle.dumps(node)) == node
    assert hash(node) == hash(Catalog.load().nodes["gb200-nvl72"])


def test_model_entries_are_raw_and_overridable(tmp_path: Path) -> None:
    assert Catalog.load().model_entries
    user_directory(tmp_path, models__tiny="tiny-model: {num_layers: 2, hidden_size: 64}")
    assert Catalog.load([tmp_path]).model_entries["tiny-model"] == {"num_layers": 2, "hidden_size": 64}


# ---- bad files ----------------------------------------------------------------------------------

NODE = (
    "n: {device: H100-SXM-80GB, devices_per_node: 8, scale_up: nvlink4, nic: ib-ndr-400, nics_per_node: 8, "
    "host_link: pcie5, host_memory_gib: 1}"
)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "devices/mine",
            MINE + "  colour: red\n",
            ":Mine-96GB.colour: unknown field. Hint: known: aliases, architecture, clock_headroom, default_node, "
            "form_factor, l2_mib, memory_bandwidth_gb_per_s, memory_gib, num_sms, peak_tflops, power_w, sources, "
            "training_time_scale, usable_memory_gib, vendor",
        ),
        (
            "devices/mine",
            MINE.replace("  power_w: 400\n", "  powerw: 400\n  power_w: 400\n"),
            ":Mine-96GB.powerw: unknown field. Hint: did you mean 'power_w'?",
        ),
        ("devices/mine", MINE.replace("  power_w: 400\n", ""), ":Mine-96GB.power_w: is required"),
        (
            "devices/mine",
            MINE.replace("num_sms: 64", "num_sms: -1"),
            ":Mine-96GB.num_sms: must be above 0; got -1",
        ),
        (
            "devices/mine",
            MINE.replace("memory_gib: 96", "memory_gib: .nan", 1),
            ":Mine-96GB.memory_gib: must be a finite number; got nan",
        ),
        (
            "devices/mine",
            MINE.replace("usable_memory_gib: 95", "usable_memory_gib: 97"),
            ":Mine-96GB.usable_memory_gib: must not exceed memory_gib=96; got 97",
        ),
        (
            "devices/mine",
            MINE.replace("bf16: 100", "bf16: 0"),
            ":Mine-96GB.peak_tflops: every peak must be positive. Hint: leave an unsupported format out",
        ),
        (
            "devices/mine",
            MINE + "  sources: {powerw: somewhere}\n",
            ":Mine-96GB.sources: unknown field 'powerw'. Hint: did you mean 'power_w'?",
        ),
        (
            "devices/mine",
            MINE + "  default_node: dgx-h10\n",
            ":Mine-96GB.default_node: unknown node 'dgx-h10'. Hint: "
            "did you mean 'dgx-h100' or 'hgx-h20' or 'dgx-1-v100'?",
        ),
        (
            "devices/mine",
            MINE + "  default_node: dgx-h100\n",
            ":Mine-96GB.default_node: dgx-h100 holds H100-SXM-80GB, not Mine-96GB",
        ),
        (
            "devices/mine",
            MINE.replace("Mine-96GB", "a100 SXM 80GB"),
            ":a100 SXM 80GB: reads the same as 'A100-SXM-80GB'. Hint: use exactly that name to replace it",
        ),
        (
            "devices/mine",
            MINE.replace("Mine-96GB", "GPU-96GB"),
            ":GPU-96GB: the name has no distinctive word. Hint: add a model number",
        ),
        ("devices/mine", "Mine: 5\n", ":Mine: must be a mapping of fields; got int"),
        (
            "devices/mine",
            "- Mine\n",
            ": the top level must map names to entries. Hint: quote names made of digits",
        ),
        (
            "devices/mine",
            "4090: {}\n",
            ": the top level must map names to entries. Hint: quote names made of digits",
        ),
        ("devices/mine", "a: {b: 1, b: 2}\n", ": is not valid YAML at line 1: key 'b' is given twice"),
        ("devices/mine", "a: [1\n", ": is not valid YAML at line 2: did not find expected ',' or ']'"),
        ("devices/mine", "a: !!python/object:os.system {}\n", ": is not valid YAML at line 1: could not determine a "),
        (
            "links",
            "l: {kind: rope, bandwidth_gb_per_s: 1, latency_us: 1}",
            ":l.kind: must be 'nvlink', 'c2c', 'xgmi', 'pcie', 'infiniband', 'roce', 'efa', 'omnipath', "
            "'slingshot' or 'ethernet'; got 'rope'. Hint: did you mean 'roce'?",
        ),
        (
            "nodes",
            NODE.replace("nvlink4", "nvlink44"),
            ":n.scale_up: unknown link 'nvlink44'. Hint: did you mean 'nvlink4' or 'nvlink5' or 'nvlink3'?",
        ),
        (
            "nodes",
            NODE.replace("H100-SXM-80GB", "H100-SXM"),
            ":n.device: unknown device 'H100-SXM'. Hint: did you mean",
        ),
        (
            "nodes",
            NODE.replace("host_memory_gib: 1", "host_memory_gib: 1, domain_devices: 12"),
            ":n.domain_devices: must be a multiple of devices_per_node=8; got 12",
        ),
        (
            "nodes",
            NODE.replace("devices_per_node: 8", "devices_per_node: 1000"),
            ":n.devices_per_node: must be at most 72; got 1000. Hint: 72",
        ),
        (
            "nodes",
            NODE.replace("devices_per_node: 8", "devices_per_node: yes"),
            ":n.devices_per_node: must not be true or false; got True",
        ),
    ],
)
def test_bad_entries_name_file_and_field(tmp_path: Path, file: str, content: str, message: str) -> None:
    user_directory(tmp_path, **{file.replace("/", "__"): content})
    with pytest.raises(SpecError) as error:
        Catalog.load([tmp_path])
    where = f"{tmp_path / file}.yaml"
    assert str(error.value).startswith(where + message), str(error.value)
    exact = not message.endswith(("could not determine a ", "did you mean"))
    assert not exact or str(error.value) == where + message


def test_same_name_in_two_files_of_a_directory(tmp_path: Path) -> None:
    user_directory(tmp_path, devices__a=MINE, devices__b=MINE)
    with pytest.raises(SpecError) as error:
        Catalog.load([tmp_path])
    folder = tmp_path / "devices"
    assert str(error.value) == f"{folder / 'b.yaml'}:Mine-96GB: is already defined in {folder / 'a.yaml'}"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        Catalog.load([tmp_path / "nowhere"])
    assert str(error.value) == f"catalog: no such directory: {tmp_path / 'nowhere'}"


def test_oversized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MAX_YAML_BYTES", 10)
    user_directory(tmp_path, links="# a comment that is longer than ten bytes\n")
    with pytest.raises(SpecError) as error:
        catalog_module.load_yaml(tmp_path / "links.yaml")
    assert str(error.value) == f"{tmp_path / 'links.yaml'}: cannot be read: it is larger than 10 bytes"


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        catalog_module.load_yaml(tmp_path / "absent.yaml")
    assert str(error.value) == f"{tmp_path / 'absent.yaml'}: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[" * 100_000, "at line 1: deeper than 32"),
        ("- " * 50_000, "at line 1: deeper than 32"),
        ("{" * 50_000, "at line 1: deeper than 32"),
        ("a: &a [" + "x, " * 99 + "x]\n" + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 100)}]\n" for old, new in zip("abcd", "bcde", strict=True)
        ), "at line 3: more than 500000 values"),
        ("a: &a [*a]", "valid YAML"),
    ],
)  # fmt: skip
def test_files_that_would_exhaust_the_machine_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    """Deep nesting would overrun the stack of the C parser; aliases of aliases grow without bound."""
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    if problem == "valid YAML":  # a list that holds itself is a value like any other; no entry may be one
        catalog_module.load_yaml(file)
        return
    with pytest.raises(SpecError) as error:
        catalog_module.load_yaml(file)
    assert str(error.value) == f"{file}: is not valid YAML {problem}"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: H\xff\xfe100\n", "UTF-8"), (b"a: " + b"9" * 10_000 + b"\n", "a number that cannot be read")],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(SpecError, match="is not valid YAML") as error:
        catalog_module.load_yaml(tmp_path / "mine.yaml")
    assert words in error.value.problem


def test_deep_nesting_is_an_error_not_a_crash(tmp_path: Path) -> None:
    user_directory(tmp_path, devices__deep="a: " + "[" * 3000)
    with pytest.raises(SpecError):
        Catalog.load([tmp_path])


def test_model_entry_must_be_a_mapping(tmp_path: Path) -> None:
    user_directory(tmp_path, models__tiny="tiny: 3")
    with pytest.raises(SpecError) as error:
        _ = Catalog.load([tmp_path]).model_entries
    assert str(error.value) == f"{tmp_path / 'models' / 'tiny.yaml'}:tiny: must be a mapping of fields; got int"


def test_directory_without_files_has_no_entries(tmp_path: Path) -> None:
    assert load_yaml_directory(tmp_path / "devices") == {}
    user_directory(tmp_path, devices__empty="# nothing yet\n")
    assert load_yaml_directory(tmp_path / "devices") == {}
