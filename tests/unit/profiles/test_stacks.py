"""Packaged framework stacks: what the files say, what fits replace, and what stacks share."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from costmodels.lowering.elementwise import GATED, LOSSES, NORMS, ROTARY, SOFTMAX
from planner.validate import memory_fit
from planner.validate.refit import time_stack
from planner.validate.stack_fit import SHARES, free_parameters
from profiles import stacks as module
from profiles.errors import SpecError
from profiles.precision import ELEMENT_BYTES
from profiles.stack import StackSpec
from profiles.stacks import FRAMEWORKS, default_stack, find_stack, fitted_stacks, load_priors, load_stacks, with_fit

PACKAGED = sorted(load_priors())
Packages = Callable[[dict[str, object], dict[str, object] | None], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Packages]:
    """Replaces the packaged files by those given: stacks, and fitted values."""

    def write(stacks: dict[str, object], cards: dict[str, object] | None = None) -> None:
        for folder in ("stacks", "fits"):
            (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / "stacks" / "all.yaml").write_text(yaml.safe_dump(stacks), encoding="utf-8")
        (tmp_path / "data" / "stacks" / "README.md").write_text("not a table", encoding="utf-8")
        if cards is not None:
            text = json.dumps({"stacks": cards})
            (tmp_path / "data" / "fits" / "stacks.json").write_text(text, encoding="utf-8")
        monkeypatch.setattr(module, "resources", SimpleNamespace(files=lambda name: tmp_path))
        forget()

    yield write
    forget()


def forget() -> None:
    load_priors.cache_clear()
    load_stacks.cache_clear()


def entry(**changes: object) -> dict[str, object]:
    return {"framework": "megatron", "description": "some stack"} | changes


def fitted(**values: float) -> dict[str, object]:
    return {"values": values, "residual_log_std": 0.12, "rows": 34, "sources": ["one.csv", "two.csv"]}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_stack_is_complete(name: str) -> None:
    stack = load_stacks()[name]
    assert stack.name == name
    assert stack.description
    assert stack.framework in FRAMEWORKS
    assert stack.residual_log_std > 0
    assert stack.memory_residual_log_std > 0
    assert stack.fitted_on.split(" runs of ")[0].isdigit()
    assert stack.gradient_dtype in ELEMENT_BYTES
    assert stack.autograd_gradients in ("fused", "freed", "kept")
    assert stack.norm in NORMS
    assert stack.rotary in ROTARY
    assert stack.activation in GATED
    assert stack.softmax in SOFTMAX
    assert stack.loss in LOSSES
    assert stack.update in ("fused", "cast", "foreach")
    assert stack.expert_dispatch in ("permuted", "masked")
    assert stack.fused_attention in ("all", "ampere", "none")


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_figures_are_possible(name: str) -> None:
    """Numbers are numbers (YAML reads 1e9 as text), shares at most 1, nothing negative."""
    for stack in (load_priors()[name], load_stacks()[name]):
        for item in fields(StackSpec):
            value = getattr(stack, item.name)
            if isinstance(item.default, float):
                assert type(value) in (int, float), item.name
                assert value >= 0, item.name
            elif isinstance(item.default, bool):
                assert type(value) is bool, item.name
            if item.name.endswith("_scale"):
                assert value > 0, item.name
        assert all(getattr(stack, share) < 1 for share in SHARES)
        assert stack.straggler_fraction_per_doubling < 0.5


@pytest.mark.parametrize("name", PACKAGED)
def test_fits_replace_fitted_values_and_no_others(name: str) -> None:
    prior, stack = load_priors()[name], fitted_stacks()[name]
    free = {*free_parameters(prior), *free_parameters(load_priors()[time_stack(prior)])}
    free |= {*memory_fit.NAMES, "memory_residual_log_std"}
    kept = {item.name: getattr(prior, item.name) for item in fields(StackSpec) if item.name in free}
    assert replace(stack, **kept, residual_log_std=0.0, within_log_std=0.0, fitted_on="") == prior


@pytest.mark.parametrize("name", [name for name in PACKAGED if load_priors()[name].shares_time_with])
def test_stacks_that_share_times_have_them_all(name: str) -> None:
    """But for what publishers add: those of a framework tell it, whichever fit its times are of."""
    stack = fitted_stacks()[name]
    other = fitted_stacks()[stack.shares_time_with]
    assert not other.shares_time_with  # no chains
    path = resources.files("profiles") / "data" / "fits" / "stacks.json"
    shared = json.loads(path.read_text(encoding="utf-8"))["stacks"][other.name]["values"]
    assert {field: getattr(stack, field) for field in shared} == {field: getattr(other, field) for field in shared}
    assert (stack.residual_log_std, stack.fitted_on) == (other.residual_log_std, other.fitted_on)
    # What the other's prior switches off, no fit can share.
    assert {*free_parameters(load_priors()[name])} <= {*free_parameters(load_priors()[other.name])}


def test_multi_tensor_optimizers_hold_a_copy_of_a_moment() -> None:
    """PyTorch's do; Composer's goes through the tensors one by one."""
    held = {name: one.optimizer_temporaries for name, one in load_stacks().items() if one.update == "foreach"}
    assert held["fsdp-eager"] == 1
    assert {name for name, copies in held.items() if copies != 1} == {name for name in held if "composer" in name}


def test_every_framework_has_a_default() -> None:
    for framework in FRAMEWORKS:
        assert find_stack(framework).framework == framework


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("megatron", "megatron-core"), ("MEGATRON-2021", "megatron-2021"), ("HuggingFace", "hf-trainer")],
)
def test_stacks_are_found_by_name_or_framework_in_any_case(wanted: str, found: str) -> None:
    assert find_stack(wanted).name == found


def test_unknown_names_are_told() -> None:
    with pytest.raises(SpecError) as caught:
        find_stack("megatorn")
    assert str(caught.value).startswith("framework: unknown name 'megatorn'. Hint: did you mean 'megatron'")
    with pytest.raises(SpecError) as caught:
        find_stack("x" * 1000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("task", "name"), [("pretrain", "megatron"), ("lora", "huggingface"), ("full", "huggingface")])
def test_default_stack(task: str, name: str) -> None:
    assert default_stack(task) == find_stack(name)


def test_stacks_cannot_be_changed() -> None:
    for stacks in (load_priors(), load_stacks()):
        with pytest.raises(TypeError):
            stacks["megatron-core"] = find_stack("fsdp")  # type: ignore[index]


def test_unknown_field_in_a_file(package: Packages) -> None:
    package({"mine": entry(gemm_scale=2.0, wings=1)})
    with pytest.raises(SpecError) as caught:
        load_priors()
    assert str(caught.value).startswith("stacks.mine: unknown fields ['gemm_scale', 'wings'] in ")
    assert str(caught.value).endswith("all.yaml")


def test_field_given_twice(package: Packages, tmp_path: Path) -> None:
    package({})
    text = "mine: {framework: megatron, description: a, kernel_launch_s: 1.0e-5, kernel_launch_s: 2.0e-5}"
    (tmp_path / "data" / "stacks" / "all.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match="kernel_launch_s"):
        load_priors()


def test_without_fits_stacks_are_their_priors(package: Packages) -> None:
    package({"mine": entry(gemm_time_scale=1.5)})
    assert load_stacks() == load_priors() == {"mine": StackSpec(name="mine", **entry(gemm_time_scale=1.5))}  # type: ignore[arg-type]


def test_fitted_values_override_priors(package: Packages) -> None:
    package(
        {"mine": entry(gemm_time_scale=1.5, kernel_launch_s=1e-5), "other": entry(gemm_time_scale=1.7)},
        {"mine": fitted(gemm_time_scale=1.25)},
    )
    stacks = load_stacks()
    assert sorted(stacks) == ["mine", "other"]
    assert stacks["mine"].gemm_time_scale == pytest.approx(1.25)
    assert stacks["mine"].kernel_launch_s == pytest.approx(1e-5)
    assert stacks["mine"].residual_log_std == pytest.approx(0.12)
    assert stacks["mine"].fitted_on == "34 runs of one.csv, two.csv"
    assert stacks["other"] == load_priors()["other"]


def write(path: Path, cards: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"stacks": cards}), encoding="utf-8")
    return path


def test_a_users_fit_replaces_the_packaged_one(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {"megatron-deepspeed": fitted(gemm_time_scale=3.0, step_time_scale=1.1)})
    stacks = with_fit(path)
    found = stacks["megatron-deepspeed"]
    assert (found.gemm_time_scale, found.step_time_scale, found.residual_log_std) == (3.0, 1.1, 0.12)
    changed = {name for name in stacks if stacks[name] != load_stacks()[name]}
    assert changed == {"megatron-deepspeed", "megatron-deepspeed-blocking"}  # the second has the times of the first
    assert find_stack("megatron-deepspeed", stacks) is found
    assert default_stack("pretrain", stacks) == default_stack("pretrain")


def test_a_catalogue_directory_may_hold_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "fits" / "stacks.json", {"fsdp": fitted(gemm_time_scale=3.0)})
    monkeypatch.setattr(module, "default_catalog", lambda: SimpleNamespace(directories=("packaged", tmp_path)))
    load_stacks.cache_clear()
    found = load_stacks()
    monkeypatch.undo()  # before anything is remembered again
    load_stacks.cache_clear()
    assert found["fsdp"].gemm_time_scale == 3.0
    assert found["fsdp"].kernel_launch_s == load_stacks()["fsdp"].kernel_launch_s


@pytest.mark.parametrize(
    ("cards", "complaint"),
    [
        ({"fsdpp": fitted()}, "unknown stack 'fsdpp'. Hint: did you mean 'fsdp'"),
        ({"fsdp": fitted(gemm_scale=1.0)}, "unknown value 'gemm_scale'. Hint: did you mean"),
        ({"fsdp": fitted(framework=1.0)}, "unknown value 'framework'"),
        ({"fsdp": fitted(gemm_time_scale=-1.0)}, "must be a number of at least 0; got -1.0"),
        ({"fsdp": fitted(gemm_time_scale=float("nan"))}, "must be a number of at least 0; got nan"),
        ({"fsdp": fitted(gemm_time_scale=0)}, "must be 0.001 to 1000; got 0"),
        ({"fsdp": fitted() | {"residual_log_std": 1000}}, "residual_log_std: must be at most 3; got 1000"),
        ({"fsdp": fitted(data_parallel_overlap=1.5)}, "is a share, at most 1; got 1.5"),
        ({"fsdp": fitted(gemm_time_scale=True)}, "must be a number of at least 0; got True"),
        ({"fsdp": {"values": {}}}, "is not a file of fitted stacks"),
        ({"fsdp": []}, "is not a file of fitted stacks"),
        ([], "is not a file of fitted stacks"),
    ],
)
def test_malformed_fits_are_refused_by_name(tmp_path: Path, cards: object, complaint: str) -> None:
    with pytest.raises(SpecError, match=re.escape(complaint)):
        with_fit(write(tmp_path / "mine.json", cards))


@pytest.mark.parametrize("text", ["", "[", "{}", "[" * 100_000, '{"stacks": ' + " " * (1 << 20) + "{}}"])
def test_files_that_are_no_fit_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    complaint = "cannot be read: it is larger than 1 MiB" if len(text) > 1 << 20 else "is not a file of fitted stacks"
    with pytest.raises(SpecError, match=rf"mine\.json: {complaint}"):
        with_fit(path)
    with pytest.raises(SpecError, match="no such file"):
        with_fit(tmp_path / "other.json")


def test_sharing_copies_times_and_nothing_else(package: Packages) -> None:
    package(
        {
            "owner": entry(gemm_time_scale=1.5, context_bytes=1e9, gradient_dtype="fp32"),
            "guest": entry(shares_time_with="owner", context_bytes=2e9, gradient_dtype="bf16", framework="deepspeed"),
        },
        {"owner": fitted(gemm_time_scale=1.25)},
    )
    guest, owner = load_stacks()["guest"], load_stacks()["owner"]
    assert guest.gemm_time_scale == pytest.approx(1.25)
    assert (guest.residual_log_std, guest.fitted_on) == (owner.residual_log_std, owner.fitted_on)
    assert (guest.context_bytes, guest.gradient_dtype, guest.framework) == (2e9, "bf16", "deepspeed")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_framework_escapes_the_power_limit_of_blackwell(framework: str) -> None:
    """Benchmarks in bursts say more than training reaches, whichever framework trains."""
    for stacks in (load_priors(), load_stacks()):
        assert find_stack(framework, stacks).blackwell_16bit_time_scale >= 1.25


def test_zero_3_of_hugging_faces_code_adds_what_was_timed():
    """5.44 ms to the three passes through a layer that is recomputed; nothing where no module is fetched by itself."""
    hooked = {stack.name: stack for stack in load_stacks().values() if stack.gathered_modules_per_layer}
    assert {stack.framework for stack in hooked.values()} == {"deepspeed"}
    llama = hooked["deepspeed"]
    assert 3 * llama.gathered_modules_per_layer * llama.module_hooks_s == pytest.approx(5.44e-3, rel=0.02)


def test_fsdp_of_every_framework_that_has_it_adds_what_was_timed():
    """2.14 ms to both passes through a layer, where the layer alone takes 1.13 ms, and 0.54 on the machine meant."""
    layered = {stack.name: stack for stack in load_stacks().values() if not stack.gathered_modules_per_layer}
    for name, found in layered.items():
        shards = found.framework in ("fsdp", "huggingface")
        assert 2 * found.module_hooks_s == (pytest.approx(2.14e-3 * 0.54 / 1.13, rel=0.03) if shards else 0), name


def test_dtensors_of_eager_code_add_what_was_timed():
    """3.89 ms to both passes through a layer of seven matrices and two norms; none where torch.compile traces."""
    slow = {stack.name: stack.dtensor_module_s for stack in load_stacks().values() if stack.dtensor_module_s}
    assert set(slow) == {"fsdp-eager", "kempner-forge-eager"}
    assert all(2 * 9 * each_s == pytest.approx(3.89e-3, rel=0.04) for each_s in slow.values())
