"""Parse the pages of the documentation: links, command lines, snippets, keys, quoted messages."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HOLE = "\0"
"""Placeholder for the values of an f-string."""


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(REPOSITORY).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[str]:
        """Return the fenced blocks in these languages."""
        return [body for language, body in FENCE.findall(self.text) if language in languages]

    def links(self) -> list[str]:
        """Return the targets of links to files or headings of the repository."""
        found = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in found if "://" not in target and not target.startswith("mailto:")]

    def anchors(self) -> set[str]:
        """Return GitHub's anchors of the headings."""
        headings = re.findall(r"^#+ +(.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

    def spans(self) -> list[str]:
        """Return the texts between backticks in the prose."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    def first_cells(self, header: str) -> list[str]:
        """Return the first cells of the tables whose first column has this header."""
        cells, inside = [], False
        for line in self.text.splitlines():
            if not line.startswith("|"):
                inside = False
                continue
            cell = line.split("|")[1].strip()
            inside = inside or cell == header
            if inside and cell != header and not cell.startswith("---"):
                cells.append(cell)
        return cells


def all_pages() -> list[Page]:
    """Return README, CONTRIBUTING, CHANGELOG and everything below ``docs``."""
    top = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [Page(path) for path in [*top, *sorted((REPOSITORY / "docs").rglob("*.md"))] if path.is_file()]


def command_lines(page: Page) -> Iterator[list[str]]:
    """Yield the arguments of each `tfspark` command, run directly or through spark-submit."""
    for block in page.blocks("", "sh", "bash", "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _arguments(line)
    for span in page.spans():
        if span.startswith("tfspark ") and not span.startswith("tfspark ..."):
            yield from _arguments(span)


def _arguments(line: str) -> Iterator[list[str]]:
    if '"$(tfspark submit-script)"' in line:
        yield ["submit-script"]
        yield shlex.split(line.split('"$(tfspark submit-script)"')[1], comments=True)
    elif line.startswith("tfspark "):
        yield shlex.split(line, comments=True)[1:]


def messages_in_source() -> list[str]:
    """Return every string of the package, with `HOLE` for the values of f-strings, and with single spaces."""
    found = []
    for path in sorted((REPOSITORY / "tfspark").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append(_normal("".join(_part(value) for value in node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(_normal(node.value))
    return found


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else HOLE


def is_said(quote: str, messages: list[str]) -> bool:
    """Whether a message contains the quote; ``...`` in the quote matches any text."""
    parts = [re.escape(_normal(part)) for part in quote.split("...")]
    pattern = re.compile(".*?".join(parts).strip())
    return any(pattern.search(message) for message in messages)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text)
