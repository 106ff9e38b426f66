"""`detector.json`: written and read back, and compared with a config."""

import json
from dataclasses import replace

import pytest

from ds_stage2ab.config.load import load_config
from ds_stage2ab.detector_file import FILE, differences, of_config, read_detector_file, write_detector_file
from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.preflight.report import preflight_report
from tests.architecture.sources import ROOT
from tests.parts import config_values, merged, write_config


@pytest.fixture
def config(quickstart, tmp_path):
    def load(changes=None):
        values = merged(config_values(quickstart, tmp_path, "run"), changes or {})
        return load_config(write_config(tmp_path / "c.yaml", values)).config

    return load


def test_what_is_written_is_read(config, tmp_path):
    assert read_detector_file(tmp_path) is None
    given = {"data.system_prompt": "caf\u00e9", "custom.extra.rollout_matching.repeat_terminate": {"max_objects": 9}}
    values = replace(of_config(config(given)), max_pixels=6400)
    write_detector_file(tmp_path, values)
    assert read_detector_file(tmp_path) == values
    assert (values.system_prompt, values.repeat_terminate.max_objects, values.max_new_tokens) == ("caf\u00e9", 9, 80)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"user_prompt": 7}, "user_prompt"),
        ({"format": 2}, "format"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"more": 1}, "more"),
        ({"repeat_terminate": {}}, "repeat_terminate"),
    ],
)
def test_a_damaged_file_is_refused(config, tmp_path, change, why):
    write_detector_file(tmp_path, of_config(config()))
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(EnvironmentFault, match=why):
        read_detector_file(tmp_path)
    (tmp_path / FILE).write_text("[1,")
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        read_detector_file(tmp_path)


def test_a_config_that_differs_is_told(config, tmp_path):
    write_detector_file(tmp_path, replace(of_config(config()), min_pixels=1024, max_pixels=6400))
    assert [*differences(config(), tmp_path)] == []  # limits that are left open are the checkpoint's
    assert [*differences(config(), tmp_path.parent)] == []
    changes = {"data.user_prompt": "Find all.", "data.codec": "keyed", "data.max_pixels": 6400, "data.min_pixels": 4096}
    told = [*differences(config(changes), tmp_path)]
    assert [line.split(" is ")[0] for line in told] == ["data.user_prompt", "data.codec", "data.min_pixels"]
    assert '"Detect every digit."' in told[0] and FILE in told[0]


def test_the_shipped_checkpoint_says_what_the_quickstart_asks():
    config = load_config(ROOT / "configs" / "quickstart" / "base.yaml").config
    folder = ROOT / "assets" / "quickstart" / "stage1"
    assert read_detector_file(folder).user_prompt == config.data.user_prompt
    assert [*differences(config, folder)] == []


def test_the_plan_warns_of_another_prompt(shipped, tmp_path):
    values = merged(config_values(shipped, tmp_path, "run"), {"data.user_prompt": "Find all."})
    file = write_config(tmp_path / "c.yaml", values)
    report = preflight_report(file, None, learners=1, rollout_devices=None, records=None)
    assert any(line.startswith('data.user_prompt is "Find all.", and the checkpoint was') for line in report.warnings)
