"""The figures that README tells in words of its own are those of the pages that it names."""

import json
import re
from importlib import resources

import numpy as np
import pytest

from costmodels.uncertainty import NORMAL_90
from tests.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROUNDED = 0.51  # of a per cent, or of the last digit: half of it, and what the page has rounded before


def told(what: str, against: str) -> list[float]:
    """Figures of a row of the table of errors."""
    (cell,) = re.findall(rf"^\| ?{re.escape(what)} \| {re.escape(against)}[^|]*\| ([^|]*) \|", README, re.MULTILINE)
    return [float(figure) for figure in re.findall(r"\d+(?:\.\d+)?", cell)]


def blind(heading: str) -> list[float]:
    """Blind errors of a kind of figures, mean over sources, round by round; those of a source that is alone."""
    page = (ROOT / "docs" / "unseen.md").read_text(encoding="utf-8")
    sections = re.findall(rf"^##+ {heading}(?: of round \d+)?\n(.*?)(?=^##)", page, re.DOTALL | re.MULTILINE)
    wanted = (r"^\| mean over sources \|  \| \d+ \| ([\d.]+) %", r"^\| [^|]+ \| [^|]+ \| \d+ \| ([\d.]+) %")
    found = [[re.search(pattern, section, re.MULTILINE) for pattern in wanted] for section in sections]
    return [float((mean or alone)[1]) for mean, alone in found if mean or alone]


@pytest.mark.parametrize(
    ("what", "against", "heading", "rounds"),
    [
        ("", "blind, eleven rounds, the oldest first", "Training steps", 11),
        ("steps of fine-tuning", "blind, likewise, ten rounds", "Fine-tuning steps", 10),
        ("peaks of fine-tuning", "blind, likewise, ten rounds", "Fine-tuning peak memory", 10),
    ],
)
def test_blind_errors_are_those_of_the_rounds(what: str, against: str, heading: str, rounds: int) -> None:
    assert len(blind(heading)) == rounds
    assert told(what, against) == pytest.approx(blind(heading), abs=ROUNDED)


def test_errors_of_sources_held_out_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")

    def held_out(measure: str) -> float:
        (figure,) = re.findall(rf"^\| {measure} \| [^|]* \| ([\d.]+) %", page, re.MULTILINE)
        return float(figure)

    (steps,) = told("steps of pre-training", "sources held out of the fit")
    assert steps == held_out("step time, MAPE, mean over sources")
    peaks = [held_out("peak memory, MAPE, mean over sources"), held_out("out-of-memory verdicts right")]
    assert told("peak memory", "sources held out of the fit") == peaks


def test_blind_errors_of_kernels_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "kernels-unseen.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| all \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    (sources,) = re.findall(r"timings of (\d+) publications", page)
    assert f"| blind, {line[0]} timings of {sources} publications |" in README
    assert told("single kernels over 20 us", "blind,") == pytest.approx([float(each) for each in line[1:]], abs=ROUNDED)


def test_factors_of_intervals_are_those_packaged() -> None:
    fit = resources.files("profiles").joinpath("data", "fits", "publishers.json").read_text(encoding="utf-8")
    values = json.loads(fit)["values"]
    trained, tuned = values["publisher_log_std"]["pretrain"], values["publisher_log_std"]["tuning"]
    peaks = {name: std for name, std in values["memory_publisher_log_std"].items() if name != "others"}
    tuning = (min(tuned.values()), max(tuned.values()))
    packaged = [trained["megatron"], trained["huggingface"], *tuning, min(peaks.values())]
    words = re.search(
        r"a factor of ([\d.]+) either way for steps of pre-training with Megatron-LM, of ([\d.]+) with Hugging Face, "
        r"of ([\d.]+) to ([\d.]+) for fine-tuning, of ([\d.]+) to ([\d.]+) for peaks",
        " ".join(README.split()),
    )
    assert words is not None
    factors = np.exp(NORMAL_90 * np.array([*packaged, max(peaks.values())]))
    assert [float(word) for word in words.groups()] == pytest.approx(factors.tolist(), abs=ROUNDED / 10)
