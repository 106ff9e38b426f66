"""The Makefile has every verb that the documents name, and its paths are those of the configs that it runs."""

import re

from ds_stage2ab.config.load import load_config
from ds_stage2ab.tools.study_rows import read_study
from tests.architecture.sources import ROOT

VERBS = ("install", "demo", "test", "test-fast", "costs", "soak", "bench", "gpu", "lint", "stage1", "docs")
VERBS += ("study-start", "study")
TEXT = (ROOT / "Makefile").read_text(encoding="utf-8")


def variable(name: str) -> str:
    return re.search(rf"^{name} := (.+)$", TEXT, re.MULTILINE).group(1)


def test_every_verb_is_there_and_in_the_help():
    missing = [verb for verb in VERBS if not re.search(rf"^{verb}:", TEXT, re.MULTILINE)]
    unexplained = [verb for verb in VERBS if f'"make {verb} ' not in TEXT]
    assert (missing, unexplained) == ([], [])


def test_run_folders_and_data_are_those_of_the_configs():
    runs = {
        "quickstart/ab_mixed": ("DEMO_RUN", "DATA"),
        "quickstart/stage1_names": ("NAMES_RUN", "SINGLE"),
        "quickstart/stage1": ("STAGE1_RUN", "DATA"),
        "study/digits_start": ("STUDY_RUN", "STUDY_DATA"),
    }
    for config, (run, data) in runs.items():
        loaded = load_config(ROOT / "configs" / f"{config}.yaml")
        assert f"{loaded.config.logging.root}/{loaded.name}" == variable(run)
        assert loaded.config.data.train.parent.as_posix() == variable(data)


def test_checkpoints_are_those_of_the_configs():
    names = ("ab_mixed", "stage1_names", "stage1")
    demo, first, second = (load_config(ROOT / "configs" / "quickstart" / f"{name}.yaml") for name in names)
    assert first.config.model.path.as_posix() == variable("MODEL")
    assert second.config.model.path.as_posix() == variable("NAMED")
    assert demo.config.model.path.as_posix() == variable("SHIPPED")
    digits = next(one for one in read_study(ROOT / "configs" / "study" / "rows.toml").domains if one.name == "digits")
    assert digits.start.as_posix() == variable("STUDY_SHIPPED")


def test_ci_runs_the_documented_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"  # so the last line that CI prints is pytest's
