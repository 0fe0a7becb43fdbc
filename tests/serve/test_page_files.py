"""The files of the chat page: nothing foreign is loaded, nothing borrowed has changed, all words exist three times."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest

import shoal.serve

STATIC = Path(shoal.serve.__file__).parent / "static"
VENDOR = STATIC / "vendor"
LIBRARIES = tomllib.loads((VENDOR / "vendor.toml").read_text(encoding="utf-8"))["library"]
OWN = [
    path
    for path in STATIC.rglob("*")
    if path.suffix in (".js", ".css", ".html") and VENDOR not in path.parents
]
SCRIPTS = "\n".join(path.read_text(encoding="utf-8") for path in OWN if path.suffix == ".js")
EAGER = "\n".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")
                  if path.stem not in ("exporting", "importing", "webpage", "speak", "reading", "sw"))  # fmt: skip
BLANK = r"(?<!\{)\{(\w+)\}"  # {{blank}} is a prompt's own
PARTS = {
    part: {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in (STATIC / "i18n" / part).glob("*.json")
    }
    for part in (".", "dialogs", "cost", "account")
}
WORDS = {
    language: words | PARTS["dialogs"][language] | PARTS["cost"][language] | PARTS["account"][language]
    for language, words in PARTS["."].items()
}


def test_borrowed_files_are_the_published_ones() -> None:
    listed = {VENDOR / f"{library['name']}-{library['version']}" / file["name"]: file["sha256"]
              for library in LIBRARIES for file in library["file"]}  # fmt: skip
    found = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "vendor.toml"
    }
    assert found == listed


def test_every_library_has_its_licence() -> None:
    for library in LIBRARIES:
        assert library["licence"]
        assert any(file["name"] == "LICENSE" for file in library["file"])


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_own_files_load_nothing_foreign_and_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"""(?:https?:)?//[\w-]+\.[\w.-]+""", re.sub(r"//[^\n]*(?<!:)$", "", text, flags=re.MULTILINE)
    )
    if path.suffix == ".js":
        assert text.startswith("// @ts-check\n")
        assert len(text.splitlines()) <= 250


def test_only_one_place_makes_html_of_a_string() -> None:
    makers = re.findall(
        r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write)\b [^\n]*",
        SCRIPTS,
    )
    assert makers == ["innerHTML = clean;"]
    assert not re.search(r"\b(?:eval|Function)\(", SCRIPTS)


def test_the_page_has_nothing_inline() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)
    assert not re.search(r"""\bstyle=["'$]""", SCRIPTS)  # style-src 'self' would drop it silently


def test_all_languages_have_the_same_words() -> None:
    assert set(WORDS) == {"en", "ja", "zh"}
    for part in PARTS.values():
        for words in part.values():
            assert list(words) == sorted(words)
            assert words.keys() == part["en"].keys()
    assert not PARTS["."]["en"].keys() & PARTS["dialogs"]["en"].keys()
    for key, text in WORDS["en"].items():
        blanks = [sorted(re.findall(BLANK, words[key])) for words in WORDS.values()]
        assert blanks == [sorted(re.findall(BLANK, text))] * len(WORDS), key


def test_every_key_exists_and_every_word_is_used() -> None:
    for part, scripts in (("dialogs", SCRIPTS), (".", EAGER)):
        words = WORDS["en"] if part == "dialogs" else PARTS["."]["en"]
        known = {re.sub(r"\.(one|other)$", "", key) for key in words}
        quoted = set(re.findall(r'"([a-z]+\.[A-Za-z]+)"', scripts))
        called = set(re.findall(r'\bt\("([^"]+)"', scripts))
        templates = set(re.findall(r"\bt\(`([^`]+)`", scripts))  # t(`effort.${effort}About`)
        computed = {key for key in known for form in templates
                    if re.fullmatch(re.sub(r"\\\$\\\{.*?\\\}", r"\\w+", re.escape(form)), key)}  # fmt: skip
        assert called <= known
        assert known <= quoted | computed


def test_every_icon_is_in_the_sprite() -> None:
    sprite = next(VENDOR.glob("lucide-static-*/sprite.svg")).read_text(encoding="utf-8")
    there = set(re.findall(r'<symbol id="([\w-]+)"', sprite))
    quoted = set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)*)"', SCRIPTS))
    named = set(re.findall(r"""(?:\$\{Icon\} name=|icon=|icon: )"([\w-]+)\"""", SCRIPTS))
    assert named <= there <= quoted
