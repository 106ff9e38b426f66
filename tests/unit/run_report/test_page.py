"""`ds-stage2ab report --html`: one file that needs nothing else, of one run and of several."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ds_stage2ab.cli import main
from ds_stage2ab.run_report.charts import curves
from ds_stage2ab.run_report.runs import read_runs
from tests.unit.run_report.folders import FORGED, STEPS, run_folder

MAX_BYTES = 6_000_000


class Page(HTMLParser):
    """Notes tags, addresses, headings and the two blocks of data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.headings, self.blocks = [], [], [], {}
        self._inside = ("", "")
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self._inside = (tag, values.get("id", ""))

    def handle_data(self, data):
        tag, key = self._inside
        if tag == "h2":
            self.headings.append(data)
        if tag == "script":
            self.blocks[key] = data
        self._inside = ("", "")


@pytest.fixture
def page(tmp_path, capsys):
    """A page of these folders: its text, its parts and its figures."""

    def make(*folders):
        file = tmp_path / "report.html"
        assert main(["report", *map(str, folders), "--html", str(file)]) == 0
        assert capsys.readouterr().out.endswith(f"{file}: open it in a browser\n")
        text = file.read_text()
        parsed = Page(text)
        return text, parsed, json.loads(parsed.blocks["charts"])

    return make


def test_a_run_is_one_file_of_its_own(tmp_path, page):
    text, parsed, charts = page(run_folder(tmp_path, "run"))
    assert len(text.encode()) < MAX_BYTES
    assert all(address.startswith("#") for address in parsed.addresses) and "url(http" not in text
    assert parsed.headings == [
        "figures before and after", "curves", "precision and recall over scores", "the same images through training",
        "descriptions", "names of matched boxes", "health of Channel B", "config", "environment",
    ]  # fmt: skip
    places = [values["data-chart"] for _, values in parsed.tags if "data-chart" in values]
    assert places == [str(place) for place in range(len(charts))]
    # every word that is not ours is text: nothing of it is markup, and nothing of it controls a terminal
    assert FORGED not in text and "<b>x</b>" not in text and "\x1b" not in text
    assert r"&lt;b&gt;x&lt;/b&gt;\x1b[2j" in text


def test_the_curves_are_the_journals(tmp_path, page):
    _, _, charts = page(run_folder(tmp_path, "run"))
    (rate,) = (chart for chart in charts if chart["data"][0].get("name") == "learning_rate")
    odd, even = (trace["x"] for trace in rate["data"])
    assert (odd, even) == (list(range(1, STEPS, 2)), list(range(2, STEPS + 1, 2)))
    assert [trace["line"]["dash"] for trace in rate["data"]] == ["solid", "dash"]
    (held_out,) = (trace for chart in charts for trace in chart["data"] if trace["x"][0] == 0 and trace["name"] == "f1")
    assert held_out["y"] == [0.6, 0.65, 0.7]
    matrix = next(chart["data"][0] for chart in charts if chart["data"][0].get("type") == "heatmap")
    assert (matrix["y"], matrix["x"], matrix["z"]) == (["cat", "dog"], ["cat", "dog"], [[1, 1], [None, 1]])


def test_the_tables_say_what_was_recorded(tmp_path, page):
    text, _, _ = page(run_folder(tmp_path, "run"))
    # AP first, before and after; from the start at 40 s to the last evaluation at 140.5 s
    assert "<td><b>0.350</b> <span class=note>from 0.300</span></td>" in text
    assert "<td>0:01:40</td>" in text
    ends = "<td>1.100</td><td>3.000</td><td>3.000</td><td>above 2</td><td></td>"
    assert f"<td>match/predicted_per_true</td>{ends}" in text
    assert "<td>parse/ok + parse/empty_answer</td><td>0.875</td>" in text and "<td>below 0.25</td>" in text
    assert "<td>training.seed</td><td>1</td><td><span class=note>my.yaml:7</span></td>" in text
    assert "<td>torch</td><td>2.13.0</td>" in text and "<td>cuda</td>" not in text


def test_the_pictures_say_what_was_answered(tmp_path, page):
    text, parsed, _ = page(run_folder(tmp_path, "run"))
    # each of the three images is in the file once, and shown three, two and three times, and as the worst of two names
    assert text.count("data:image/jpeg;base64,") == 3
    assert sum(values.get("role") == "img" for _, values in parsed.tags) > 8
    assert ">dog, is cat<" in text
    assert "step 20: 1 true, 2 answered, 0 right, 1 under a wrong name" in text
    assert "step 40: 1 true, 0 answered, 0 right, malformed, cut at the token limit" in text


def test_runs_stand_side_by_side(tmp_path, page):
    first, second = run_folder(tmp_path, "first"), run_folder(tmp_path, "second", with_b=False, f1=0.5)
    text, _, charts = page(first, second)
    assert re.search(r"<td>eval/f1</td><td>0.6000</td><td>0.7000</td>.*<td>0.5000</td><td>0.6000</td>", text)
    assert "what differs between the runs (2)" in text
    (loss,) = ([t["name"] for t in chart["data"]] for chart in charts if chart["data"][0]["y"][0] == 4.95)
    assert set(loss) == {"first", "second"}
    assert "<td>loss/total (A)</td>" in text and "<td>loss/total</td>" not in text
    assert "first, step 20: " in text and "second, step 20: " in text


def test_a_run_without_answers_has_fewer_sections(tmp_path, page):
    """As one without data.validation, or of another version."""
    run = run_folder(tmp_path, "run", with_b=False)
    for name in ("origins.json", "environment.json", "attempts.jsonl", "warnings.log", "config.json"):
        (run / name).unlink()
    for file in (run / "evaluations").iterdir():
        file.unlink()
    _, parsed, charts = page(run)
    assert parsed.headings == ["figures before and after", "curves"]
    assert charts


def test_images_that_are_gone_are_said(tmp_path, page):
    run = run_folder(tmp_path, "run")
    (tmp_path / "images" / "1.png").unlink()
    text, _, _ = page(run)
    assert re.search("1 under a wrong name; the picture: [^<]*1.png is gone", text)
    assert text.count("data:image/jpeg;base64,") == 2


def test_what_is_refused(tmp_path, capsys):
    run = run_folder(tmp_path, "run")
    (tmp_path / "taken.html").touch()
    assert main(["report", str(run), "--html", str(tmp_path / "taken.html")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["report", *[str(run)] * 7, "--html"]) == 2
    assert "7 runs are too many for one page" in capsys.readouterr().err
    (run / "origins.json").write_text("[1]")
    assert main(["report", str(run), "--html"]) == 3
    assert "origins.json: is no JSON object" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_without_a_name_it_lies_in_the_first_run_and_is_replaced(tmp_path):
    run = run_folder(tmp_path, "run")
    for _ in range(2):
        assert main(["report", str(run), "--html"]) == 0
    assert (run / "report.html").stat().st_size < MAX_BYTES


def test_a_long_run_makes_no_longer_lines(tmp_path):
    """The last step stays, whatever the stride."""
    file = run_folder(tmp_path, "run") / "metrics.jsonl"
    (run,) = read_runs([file.parent])
    steps = tuple(replace(run.history.steps[0], step=number) for number in range(1, 5_002))
    long = replace(run, history=replace(run.history, steps=steps))
    for count in (1, 3):
        charts = curves([replace(long, name=str(place)) for place in range(count)])
        lines = [trace["x"] for chart in charts for trace in chart.traces if len(trace["x"]) > 3]
        assert {line[-1] for line in lines} == {5_001}
        assert all(300 / count < len(line) <= 400 / count for line in lines)
