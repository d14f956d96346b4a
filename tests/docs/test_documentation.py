"""The documentation tells the truth: quoted output is current, commands run, every option is explained."""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from profiles.cluster_entries import ClusterEntry, MixedClusterEntry
from profiles.cluster_string import cluster_from_mapping
from profiles.mixed_cluster import mixed_cluster_from_mapping, parse_mixed_cluster
from service.app import create_app
from service.settings import ENVIRONMENT_PREFIX, ServiceSettings
from tests.places import ROOT

README = ROOT / "README.md"
# One blocks, one reads files that it names, one needs the catalogue and is tested with it.
SKIPPED = ("planner serve", "planner compare", "planner plan --model my-")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def load_refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", Path(__file__).with_name("refresh.py"))
    if spec is None or spec.loader is None:
        raise ImportError("refresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


refresh = load_refresh()


@pytest.mark.parametrize("name", refresh.DOCUMENTS)
def test_quoted_output_is_current(name: str) -> None:
    text = (ROOT / name).read_text()
    now = refresh.refreshed(text)
    assert NUMBER.sub("#", now) == NUMBER.sub("#", text), f"run 'make docs' and commit {name}"
    pairs = zip(NUMBER.findall(text), NUMBER.findall(now), strict=True)
    assert [pair for pair in pairs if not same_but_rounding(*pair)] == [], f"run 'make docs' and commit {name}"


def same_but_rounding(written: str, now: str) -> bool:
    """Whether two printed numbers are equal or neighbours: another processor may round the other way."""
    if written == now:
        return True
    unit = 10.0 ** -len(now.partition(".")[2])
    rounded = "." in now or len(now) > 2  # a short whole number is a count or a degree
    return rounded and abs(float(written.replace(",", "")) - float(now.replace(",", ""))) < 1.5 * unit


def unmarked_commands() -> list[str]:
    """``$ planner ...`` lines of shell blocks that are not quoted output."""
    text = re.sub(r"<!-- output: .*?<!-- end -->", "", README.read_text(), flags=re.DOTALL)
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ").split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("planner ") and not line.startswith(SKIPPED)]


@pytest.mark.parametrize("command", unmarked_commands())
def test_readme_commands_run(command: str, tmp_path: Path) -> None:
    limit = " --seconds 2" if command.startswith("planner search ") else ""  # a proof takes longer, and adds nothing
    done = refresh.run(command + limit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_catalogue_extends_the_planner(tmp_path: Path) -> None:
    text = README.read_text()
    for path, content in re.findall(r"```yaml\n# my-catalog/(\S+)\n(.*?)```", text, re.DOTALL):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    (command,) = re.findall(r"^(planner plan --model my-.*)$", text, re.MULTILINE)
    program, *arguments = shlex.split(command)  # a process reads catalogues once
    path = Path(sys.executable).with_name(program)
    with refresh.environment():
        variables = os.environ | {"PLANNER_CATALOG": str(tmp_path)}
        done = subprocess.run(
            [path, *arguments], env=variables, capture_output=True, text=True, check=False, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "my-3b" in done.stdout
    assert "MyGPU-96GB" in done.stdout


def readme_python() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_readme_python_runs() -> None:
    assert readme_python()
    for block in readme_python():
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_python_has_the_types_it_says(tmp_path: Path) -> None:
    """As somebody checks it who copies it, also where nothing fits."""
    example = tmp_path / "example.py"
    example.write_text("".join(readme_python()))
    command = [sys.executable, "-m", "mypy", "--strict", str(example)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z]+)[ `]|^\$ make ([a-z]+)", document.read_text(), re.MULTILINE))
        assert {name for pair in named for name in pair if name} <= targets, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
    paths = re.findall(r"`((?:profiles|costmodels|planner|service|tests|docs)/[A-Za-z0-9_./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists() and not list(ROOT.glob(path + "*"))] == []


def options(help_text: str) -> dict[str, str]:
    """Options of a command's help with the text beside each."""
    found = re.findall(r"^[\s│|]*(?:\*\s+)?(--[a-z][a-z-]*)[^\n]*?\s{2,}([^\n]*)", help_text, re.MULTILINE)
    return dict(found)


def commands() -> list[str]:
    listed = re.findall(r"^[\s│|]*([a-z]+)\s{2,}\S", refresh.output_of("planner --help").partition("Commands")[2], re.M)
    return [name for name in listed if name not in ("help", "version")]


def test_every_option_is_explained_in_the_command_reference() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text()
    assert commands()
    for name in commands():
        quoted = re.search(rf"<!-- output: planner {name} --help -->\n(.*?)<!-- end -->", reference, re.DOTALL)
        assert quoted, name
        found = options(quoted[1])  # which is current, as is tested above
        assert found, name
        assert [option for option, words in found.items() if not re.search(r"[a-z]{2}", words)] == [], name


def test_the_checker_reads_commands() -> None:
    assert all(shlex.split(command)[0] == "planner" for command in unmarked_commands())


def test_fields_of_clusters_are_documented_as_the_service_says() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    for entry in (ClusterEntry, MixedClusterEntry):
        for name, item in entry.model_fields.items():
            assert f"| `{name}` | {item.description} |" in page


def test_the_clusters_that_are_shown_can_be_planned_for() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    one, several = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert cluster_from_mapping(one).num_devices == 32
    assert mixed_cluster_from_mapping(several).num_devices == 64
    for row in re.findall(r"^\| (`[^|]*`) \| ", page.partition("## As a mapping")[0], re.MULTILINE):
        for text in re.findall("`([^`]+)`", row):
            assert parse_mixed_cluster(text).num_devices


def test_settings_and_routes_of_the_service_are_documented() -> None:
    page = (ROOT / "docs" / "rest.md").read_text()
    for item in dataclasses.fields(ServiceSettings):
        assert f"| `{ENVIRONMENT_PREFIX}{item.name.upper()}` | {item.default} |" in page
    for path in create_app(ServiceSettings()).openapi()["paths"]:
        assert path.partition("/{")[0] in page
