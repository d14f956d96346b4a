from planner.validate.dataflow.report import page
from planner.validate.experiment import Experiment


def experiment(name, passed=True):
    return Experiment(
        name=name,
        title="What",
        criterion="all agree",
        passed=passed,
        findings=("One finding.",),
        header=("a", "b"),
        rows=(("1", "2"),),
    )


def test_the_page_says_what_holds_and_what_does_not():
    text = page([experiment("E1"), experiment("E2", passed=False)])
    assert "| E1 | What | all agree | holds |" in text
    assert "| E2 | What | all agree | does not hold |" in text
    assert (
        "## E2: What\n\nMust hold: all agree. **Does not hold.**\n\n- One finding.\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        in text
    )
