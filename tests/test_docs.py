"""The pages for users hold what is there: every reason and option, and commands that the real parsers take."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcoss import cli as medcoss_cli
from preprocess import cli as preprocess_cli
from preprocess.reasons import REASONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGE = ROOT / "docs" / "preprocess.md"
COMMANDS = (*preprocess_cli.modality_names(), "phantoms")
_EVERYWHERE = {"--help", "--debug"}


def blocks(text: str) -> tuple[list[str], str]:
    """Lines of shell in indented and fenced blocks, and the text without any block."""
    lines, prose, fence = [], [], None
    for line in text.splitlines():
        if match := re.match(r"\s*```(\w*)", line):
            fence = None if fence is not None else match[1]
        elif fence is not None:
            lines += [line.strip()] if fence in ("", "sh", "bash", "shell") else []
        elif line.startswith("    "):
            lines.append(line.strip())
        else:
            prose.append(line)
    return lines, "\n".join(prose)


def examples(page: Path) -> list[list[str]]:
    """The words of each `preprocess` or `medcoss` command of a page; placeholders such as MODALITY are left out."""
    lines, prose = blocks(page.read_text(encoding="utf-8"))
    found = []
    for text in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
        if re.match(r"(preprocess|medcoss) ", text) and not re.search(r"MODALITY|[…{|]", text):
            found.append(shlex.split(text, comments=True))
    return found


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    return preprocess_cli.build_parser(words[1:]) if words[0] == "preprocess" else medcoss_cli.build_parser()


def options_of(parser: argparse.ArgumentParser, command: str) -> set[str]:
    """The long options of one command of a parser."""
    chosen = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = chosen.choices[command]._option_string_actions
    return {name for name in known if name.startswith("--")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf-8")
    for words in examples(page):
        if f"preprocess/modalities/{words[1]}.py" in text and words[1] not in COMMANDS:
            continue  # the page shows how to make this one
        try:
            # Prose names a verb by itself: then it must exist.
            parser_of(words).parse_args(words[1:] if len(words) > 2 else [words[1], "--help"])
        except SystemExit as stop:
            assert stop.code == 0, f"{page.name}: {shlex.join(words)}: {capsys.readouterr().err}"


def test_commands_are_found_where_they_stand() -> None:
    assert len(examples(PAGE)) >= 20
    assert ["preprocess", "ct", "--out", "shards/ct"] in examples(ROOT / "README.md")
    assert any(words[:2] == ["medcoss", "erase"] and len(words) > 2 for words in examples(PAGE))


def test_the_page_explains_every_reason_and_no_other() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Reasons\n")[2].partition("\n## ")[0]
    rows = [re.split(r" *(?<!\\)\| *", line)[1:4] for line in section.splitlines() if line.startswith("| `")]
    explained = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(explained) == sorted(REASONS)
    for _, status, meaning in rows:
        assert set(status.split(", ")) <= {"written", "skipped", "failed"}
        assert len(meaning) > 10


def test_every_option_of_the_page_exists_and_every_option_is_on_the_page() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", PAGE.read_text(encoding="utf-8")))
    offered = {command: options_of(preprocess_cli.build_parser([command]), command) for command in COMMANDS}
    converting = set().union(*(offered[name] for name in preprocess_cli.modality_names()))
    assert converting - _EVERYWHERE - named == set()
    elsewhere = set().union(offered["phantoms"], options_of(medcoss_cli.build_parser(), "erase"))
    assert named - converting - elsewhere == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_pages_python_names_the_failed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    monkeypatch.chdir(tmp_path)
    common = ["--salt-file", str(tmp_path / "salt"), "--workers", "1", "--no-qc"]
    assert preprocess_cli.main(["xray", "--in", str(tmp_path), "--out", "shards/xray", *common]) == 3
    capsys.readouterr()
    text = PAGE.read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    line = next(line for line in blocks(text)[0] if line.startswith("python -c "))
    assert block is not None
    exec(compile(block[1], "page", "exec"), {})
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'torn.png'} unreadable ")
    exec(compile(shlex.split(line)[2], "page", "exec"), {})
    assert "'unreadable'" in capsys.readouterr().out
