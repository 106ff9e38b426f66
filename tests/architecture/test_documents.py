"""Documents name only files that exist, and README's tree is the real one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGE, ROOT, relative, repository_files

# Folders that a run or a verb makes: documents may name what will stand in them.
MADE_LATER = ("runs/", "build/", ".venv/")
# First parts of the paths that documents name; anything else in backquotes is not taken for a path.
OURS = ("ds_stage2ab/", "assets/", "configs/", "csrc/", "docs/", "schemas/", "tests/", ".ci/")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
MODULES = " " * 6
DOCUMENT = re.compile(r"(?<![\w/*<{])([\w./-]*\w\.md)\b")


def tree_paths(readme: str) -> Iterator[str]:
    """Paths of the tree in a README: fenced blocks whose first line is a folder.

    A line at two columns has a path, and what it is; a line at six the modules of the folder above it.
    """
    for block in re.findall(r"```[^\n]*\n(.*?)```", readme, re.DOTALL):
        top, *lines = block.splitlines()
        if not re.fullmatch(r"[\w./-]+/", top):
            continue
        folder = top
        for line in lines:
            if line.startswith(MODULES):
                yield from (f"{folder}{stem}.py" for stem in line.split())
            else:
                folder = top + line.split()[0]
                yield folder


def missing_paths(text: str, folder: Path) -> Iterator[str]:
    """Links and quoted paths of one document that lead nowhere; `folder` is where the document stands."""
    for target in LINK.findall(text):
        path = target.split("#")[0]
        if path and "://" not in path and not path.startswith("mailto:") and not (folder / path).exists():
            yield target
    for word in (word for quoted in QUOTED.findall(text) for word in quoted.split()):
        path = word.rstrip(".,:;").split("::")[0]
        is_pattern = re.search(r"[*<>{}$]|\.\.\.", path)
        if path.startswith(OURS) and not path.startswith(MADE_LATER) and not is_pattern and not (ROOT / path).exists():
            yield word


def missing_documents(text: str, names: set[str]) -> Iterator[str]:
    """Every `something.md` that a text names without a file of that name in the repository."""
    return (name for name in DOCUMENT.findall(text) if Path(name).name not in names)


def test_the_tree_in_readme_is_the_real_one():
    paths = list(tree_paths((ROOT / "README.md").read_text(encoding="utf-8")))
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    folders = {f"{relative(path.parent)}/" for path in modules} - {"ds_stage2ab/"}
    assert sorted(paths) == sorted({*map(relative, modules), *folders})


def test_documents_lead_somewhere():
    documents = repository_files((".md",))
    found = {relative(path): list(missing_paths(path.read_text(encoding="utf-8"), path.parent)) for path in documents}
    assert {name: words for name, words in found.items() if words} == {}


def test_every_document_that_is_named_exists():
    files = repository_files((".md", ".py", ".toml", ".yaml", ".json", ".cpp"))
    names = {path.name for path in files}
    texts = {relative(path): path.read_text(encoding="utf-8") for path in files if path != Path(__file__)}
    found = {name: list(missing_documents(text, names)) for name, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_the_tree_is_read():
    readme = "# t\n```bash\nmake demo\n```\n```\na/\n  c/   two words\n      d e\n  b.py  x\n```\n"
    assert list(tree_paths(readme)) == ["a/c/", "a/c/d.py", "a/c/e.py", "a/b.py"]


@pytest.mark.parametrize(
    "text", ["[x](docs/no.md)", "see `ds_stage2ab/no.py`", "`python tests/no.py --x`", "`tests/no.py::test_x`"]
)
def test_a_path_that_leads_nowhere_is_found(text: str):
    assert len(list(missing_paths(text, ROOT))) == 1


@pytest.mark.parametrize(
    "text", ["[x](https://a.b/c)", "`runs/<name>/`", "`configs/*.yaml`", "`pyproject.toml`", "[x](#part)", "`a/b`"]
)
def test_other_text_is_no_path(text: str):
    assert list(missing_paths(text, ROOT)) == []


def test_a_document_that_is_not_there_is_found():
    assert list(missing_documents("see docs/nowhere.md, README.md and <x>.md", {"README.md"})) == ["docs/nowhere.md"]


def test_every_shipped_config_stands_in_the_readme_of_configs():
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    folder = ROOT / "configs"
    missing = [path for path in folder.rglob("*.yaml") if f"`{path.relative_to(folder).as_posix()}`" not in text]
    assert missing == []


# What the runbook and the page on debugging tell users to type -> the test that runs it, with words that stand in both.
COMMANDS = {
    "python ds_stage2ab/train.py --config": ("tests/test_typed_by_hand.py", "python ds_stage2ab/train.py --config"),
    "python -m ds_stage2ab.validate": ("tests/unit/test_validate.py", "--learners"),
    "python -m tests.bench.packing_speed": ("tests/bench/test_packing.py", "tests.bench.packing_speed"),
    "ds-stage2ab data": ("tests/unit/data_report/test_command.py", '"data"'),
    "ds-stage2ab export coco": ("tests/unit/formats/test_export_coco.py", "export_coco"),
    "ds-stage2ab predict": ("tests/unit/predict/test_predict.py", '"predict"'),
    "ds-stage2ab init": ("tests/unit/tools/test_init_config.py", '"init"'),
    "python -m tests.bench.decoding_pictures": ("tests/bench/test_decoding.py", "decoding_pictures"),
    "ds-stage2ab plan": ("tests/unit/test_cli.py", "plan"),
    "ds-stage2ab launch": ("tests/faults/test_launcher.py", "launch"),
    "ds-stage2ab evaluate": ("tests/test_evaluate.py", "evaluate"),
    "ds-stage2ab checkpoints": ("tests/faults/test_resume.py", '"checkpoints"'),
    "ds-stage2ab report runs/<name>": ("tests/test_typed_by_hand.py", "ds-stage2ab report runs/<name>"),
    "ds-stage2ab report RUN": ("tests/unit/run_report/test_page.py", '"report"'),
    "ds-stage2ab add-coord-tokens": ("tests/test_typed_by_hand.py", "ds-stage2ab add-coord-tokens"),
    "deepspeed --hostfile": ("tests/faults/two_hosts.py", "--hostfile"),
    "deepspeed --num_gpus": ("tests/parts.py", "--num_gpus"),
    "deepspeed --no_local_rank --module ds_stage2ab evaluate": ("tests/test_evaluate.py", "--no_local_rank"),
    "DS_ACCELERATOR=cpu deepspeed --num_gpus": ("tests/parts.py", "DS_ACCELERATOR"),
    "kill -USR2": ("tests/faults/planted.py", "SIGUSR2"),
}
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
TYPED = re.compile(r"^(?:[A-Z_]+=\S+ )?(?:python|deepspeed|ds-stage2ab|kill|make|pip) .*$", re.MULTILINE)


def typed_commands(text: str) -> list[str]:
    """Commands of a document: lines of fenced blocks, and what stands in single backquotes."""
    quoted = (words.replace("\n", " ") for words in re.findall(r"`([^`]+)`", BLOCK.sub("", text)))
    return [line for part in (*BLOCK.findall(text), *quoted) for line in TYPED.findall(part)]


@pytest.mark.parametrize("document", ["docs/training/STAGE2_RUNBOOK.md", "docs/debugging.md"])
def test_every_command_that_users_are_told_is_run_by_a_test(document):
    typed = typed_commands((ROOT / document).read_text(encoding="utf-8"))
    assert typed
    unknown = [line for line in typed if not any(line.startswith(command) for command in COMMANDS)]
    assert unknown == [], "name the test that runs it, or say in the document that it needs a GPU"


def test_the_tests_that_run_them_do():
    for path, word in COMMANDS.values():
        assert word in (ROOT / path).read_text(encoding="utf-8"), path


def test_commands_are_found_in_blocks_and_in_sentences():
    text = "Run `make no` or `make` or `X=1 python\nno.py`:\n```\nls\ndeepspeed no.py\n```\nnot `--set a=b`.\n"
    assert typed_commands(text) == ["deepspeed no.py", "make no", "X=1 python no.py"]
