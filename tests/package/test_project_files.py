"""What editors, git, clangd and CI read: it names what exists, agrees with `make lint`, and refuses a bad commit."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.prefix, "bin")
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
(REPOSITORY,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS = {hook["id"]: hook for hook in REPOSITORY["hooks"]}
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
RUN = [step["run"] for step in STEPS if "run" in step]


# --- .editorconfig --------------------------------------------------------------------------------------------------


def editor() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    return found


def test_editors_and_formatters_agree_on_the_length_of_lines():
    with (ROOT / "pyproject.toml").open("rb") as file:
        python = tomllib.load(file)["tool"]["ruff"]["line-length"]
    cxx = int(re.search(r"^ColumnLimit: (\d+)$", (ROOT / ".clang-format").read_text(), re.MULTILINE).group(1))
    assert editor().getint("*.{py,pyi}", "max_line_length") == python
    assert editor().getint("*.{cpp,h,cu}", "max_line_length") == cxx


def test_files_are_as_editors_leave_them():
    every = dict(editor()["*"])
    assert every == {
        "charset": "utf-8",
        "end_of_line": "lf",
        "insert_final_newline": "true",
        "trim_trailing_whitespace": "true",
    }
    assert editor()["Makefile"]["indent_style"] == "tab"
    kinds = (".py", ".pyi", ".cpp", ".h", ".cu", ".sh", ".md", ".toml", ".yml", ".json")
    folders = ("gatedops", "csrc", "tests", "benchmarks", "examples", "scripts", "docs", ".github")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in kinds and path.is_file()]
    wrong = [path for path in files if re.search(rb"\r|[ \t]\n|[^\n]\Z", path.read_bytes())]
    # What tools and runs leave in folders that git ignores is not for editors.
    ignored = (".mypy_cache", "out", ".saved", "__pycache__")
    assert [path for path in wrong if not set(path.parts) & set(ignored)] == []


# --- hooks of git ---------------------------------------------------------------------------------------------------


def test_the_source_distribution_has_every_folder_and_file_of_the_project():
    """Scripts, documents and tests use each other's files; setuptools adds those that pip itself reads."""
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    grafted = {name for words in lines if words[0] == "graft" for name in words[1:]}
    included = {name for words in lines if words[0] == "include" for name in words[1:]}
    known = {"gatedops", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", ".gitignore"}
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert {path.split("/")[0] for path in files} - known == grafted | included


def test_every_hook_runs_a_locked_tool_of_make_lint():
    locked = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    tools = [Path(hook["entry"].split()[0]) for hook in HOOKS.values()]
    assert {tool.name for tool in tools} == {"ruff", "clang-format", "mypy"} <= set(locked)
    assert all(tool.parent == Path(".venv/bin") for tool in tools)
    assert REPOSITORY["repo"] == "local"
    assert all(hook["language"] == "system" for hook in HOOKS.values())
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE).group(1)
    assert all(re.search(rf"(-m |/){tool.name}\b", lint) for tool in tools)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with these hooks and the tools of this Python."""
    if not all((TOOLS / name).exists() for name in ("pre-commit", "ruff", "clang-format", "mypy")):
        pytest.skip("the tools of make lint are not installed beside this Python")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in (".pre-commit-config.yaml", ".clang-format", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "csrc").mkdir()
    for command in (["init"], ["config", "user.name", "A"], ["config", "user.email", "a@b.c"]):
        assert git(tmp_path, *command).returncode == 0
    done = subprocess.run(
        [TOOLS / "pre-commit", "install"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PRE_COMMIT", "SKIP"))}
    return kept | {"PRE_COMMIT_HOME": str(folder / ".git" / "hook-cache"), "GIT_CONFIG_GLOBAL": os.devnull}


def git(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("name", "bad", "good", "hook"),
    [
        ("a.py", "x = {  'a':1 }\n", 'x = {"a": 1}\n', "ruff format"),
        ("a.py", "import os\n", "x = 1\n", "ruff check"),
        ("csrc/a.cpp", "int  f( ){return 1;}\n", "int f() {\n  return 1;\n}\n", "clang-format"),
    ],
    ids=["layout of Python", "lint of Python", "layout of C++"],
)
def test_a_commit_of_a_bad_file_is_refused(clone, name, bad, good, hook):
    (clone / name).write_text(bad)
    git(clone, "add", name)
    refused = git(clone, "commit", "-m", "bad")
    assert refused.returncode != 0
    assert re.search(rf"^{hook}\.*Failed$", refused.stderr + refused.stdout, re.MULTILINE), refused.stderr
    assert git(clone, "rev-parse", "HEAD").returncode != 0  # there is no commit
    (clone / name).write_text(good)
    git(clone, "add", name)
    taken = git(clone, "commit", "-m", "good")
    assert taken.returncode == 0, taken.stderr


# --- the workflow ---------------------------------------------------------------------------------------------------


def test_the_workflow_names_targets_and_files_that_exist():
    targets = {target for run in RUN for target in re.findall(r"\bmake ([\w-]+)", run)}
    assert targets == {"setup", "test", "test-portable"} <= TARGETS
    made = {"build/build.log"}  # by make build
    paths = {path for run in RUN for path in re.findall(r"(?<![\w/])\.?\w+/[\w./-]+", run)} - made
    assert ".ci/run" in paths
    assert len(paths) > 3
    assert [path for path in paths if not (ROOT / path).exists()] == []
    cached = {step["with"]["cache-dependency-path"] for step in STEPS if "setup-python" in step.get("uses", "")}
    assert cached == {"requirements.lock"}


def test_the_workflow_runs_the_gate_on_the_oldest_python():
    linux = WORKFLOW["jobs"]["linux"]
    assert "bash .ci/run" in [step.get("run") for step in linux["steps"]]
    with (ROOT / "pyproject.toml").open("rb") as file:
        oldest = tomllib.load(file)["project"]["requires-python"]
    assert oldest == f">={linux['strategy']['matrix']['python'][0]}"


def test_the_workflow_may_only_read_and_ends():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["group"]
    for job in WORKFLOW["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120
        assert "permissions" not in job
    used = {step["uses"] for step in STEPS if "uses" in step}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


# --- clangd ---------------------------------------------------------------------------------------------------------


def test_clangd_finds_how_every_file_for_the_cpu_is_compiled():
    path = ROOT / "build" / "compile_commands.json"
    if not path.exists() and not os.environ.get("CI"):
        pytest.skip("the build is of an older setup.py: run make setup")
    entries = json.loads(path.read_text())
    named = {entry["file"].rpartition("/csrc/")[2]: entry["command"] for entry in entries}
    sources = {str(path.relative_to(ROOT / "csrc")) for path in (ROOT / "csrc").glob("**/cpu/*.cpp")}
    assert len(sources) > 20
    assert sources <= set(named), "the build is older than the sources: run make setup"
    assert all("-std=c++17" in command and f"/csrc/{name}" in command for name, command in named.items())
