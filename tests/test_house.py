"""The rules of the house, checked: floors, cheap imports, maps and help pages that do not drift."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "shoal"

# Imports point downwards only (docs/architecture.md has the same table for people).
MAY_IMPORT = {
    "ops": set(),
    "model": {"ops"},
    "data": set(),
    "cost": {"model", "ops"},
    "train": {"model", "data", "cost", "ops"},
    "engine": {"model", "data", "ops"},
    "eval": {"engine", "train", "model", "data", "cost", "ops"},
    "tune": {"train", "engine", "eval", "model", "data", "cost", "ops"},
    "serve": {"engine", "data", "cost", "eval", "model"},
    "cli": {"serve", "tune", "eval", "train", "engine", "model", "data", "cost", "ops"},
}
GROUND = {"errors", "files", "__version__"}  # anybody may use the ground floor


def parsed(path: Path) -> ast.Module:
    """CPython 3.11 raises SystemError now and then while a thread that an earlier test left compiles too: once more."""
    text = path.read_text(encoding="utf-8")
    try:
        return ast.parse(text)
    except SystemError:
        return ast.parse(text)


def imports_of(path: Path) -> list[tuple[str, int]]:
    """Every shoal module that a file imports, lazily or not, with the line."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [
                (alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "shoal"
            ]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out"
            if node.module == "shoal":
                found += [(f"shoal.{alias.name}", node.lineno) for alias in node.names]
            elif node.module and node.module.startswith("shoal."):
                found += [(node.module, node.lineno)]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0]


FILES = sorted(p for p in SOURCE.rglob("*.py") if len(p.relative_to(SOURCE).parts) > 1)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room}/ is not on a floor yet"
    for module, line in imports_of(path):
        target = module.split(".")[1] if "." in module else "__version__"
        if target == room or target in GROUND:
            continue
        assert target in MAY_IMPORT[room], f"{path}:{line}: {room} may not import {module}"
        if room == "cost" and target == "model":
            allowed = ("shoal.model.config", "shoal.model.counts")
            assert module in allowed, f"{path}:{line}: cost sees only config and counts"
        if room == "serve" and target == "model":
            assert module in ("shoal.model.registry", "shoal.model.config", "shoal.model.counts"), (
                f"{path}:{line}"
            )


@pytest.mark.parametrize("room", ["engine", "serve", "cli", "data", "cost"])
def test_torch_stays_where_it_belongs(room: str) -> None:
    """In engine/ only torch_runner.py imports torch; serve touches no tensor; nothing in cli does at import."""
    for path in (SOURCE / room).rglob("*.py"):
        tree = parsed(path)
        nodes = tree.body if room == "cli" else list(ast.walk(tree))
        for node in nodes:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "torch" for name in names):
                assert room == "engine" and path.name == "torch_runner.py", (
                    f"{path}:{node.lineno} imports torch"
                )


def test_rooms_keep_to_themselves() -> None:
    """Importing a room is cheap: an `__init__.py` holds a docstring and nothing else."""
    for path in SOURCE.rglob("__init__.py"):
        if path.parent in (SOURCE, SOURCE / "ops" / "native"):  # the latter knows its extension
            continue
        body = parsed(path).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{path}: only a docstring belongs here"


def test_no_pickle_anywhere() -> None:
    """No pickle is ever read: the modules that could are not used at all."""
    pattern = re.compile(
        r"^\s*(import|from) (pickle|dill|joblib|cloudpickle|marshal|shelve)\b|torch\.load\(", re.M
    )
    for path in SOURCE.rglob("*.py"):
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_help_answers_at_once() -> None:
    """`shoal --help` in under 0.3 s, without torch.

    Processor time of the best of five, so that a busy machine does not decide; asleep it never is.
    """
    code = (
        "import sys, typer; from shoal.cli.main import app; typer.main.get_command(app); "
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'a heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    best = 9.9
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "shoal.cli.main", "--help"], check=True, capture_output=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, spent)
    assert best < 0.3


def test_command_pages_are_what_help_prints() -> None:
    """docs/commands.md is generated: `python tools/commands_page.py` writes it."""
    command = [sys.executable, str(ROOT / "tools" / "commands_page.py"), "--print"]
    page = subprocess.run(command, capture_output=True, text=True, check=True)
    assert page.stdout == (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), (
        "run tools/commands_page.py"
    )


def test_every_command_shows_examples() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        name = section.split("\n", 1)[0]
        assert "xample" in section, f"`{name} --help` has no example"


def test_the_map_in_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists()}
    named = set(re.findall(r"^\| `(?:src/shoal/)?(\w+)/` \|", text, flags=re.M))
    assert named == rooms
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / link).exists(), f"README links to {link}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_between_documents_hold(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    wanted = list(project["project"]["dependencies"]) + list(project["build-system"]["requires"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert name and f"`{name[0]}`" in reasons, f"{requirement} has no line in docs/dependencies.md"


def test_readmes_say_the_same() -> None:
    """The translations have the same sections, pictures and commands as README.md."""

    def skeleton(name: str) -> tuple[int, list[str], list[str]]:
        text = (ROOT / name).read_text(encoding="utf-8")
        blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
        code = ["\n".join(line.split("#")[0].rstrip() for line in block.splitlines()) for block in blocks]
        return len(re.findall(r"^## ", text, re.M)), re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text), code

    assert skeleton("README.ja.md") == skeleton("README.md") == skeleton("README.zh.md")
