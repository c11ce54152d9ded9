"""The pages for people, as their tests read them: what they tell to type, and where each of it is run.

A command is a line of a block of ``sh``, or code in a sentence that begins with a program and has words after it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"sh", "python", "yaml", "toml", "dockerfile", "text"}
MARKDOWN = MarkdownIt("commonmark").enable("table")

# Where a command is run as it is written: the page it is on, if that counts, how it begins, and the place; the first
# line that fits counts. `unit` is tests/unit/test_documents.py, with a lite server; `site` is
# tests/e2e/test_documents.py, with the site of `make up`. What is run nowhere has the reason.
PLACES = [
    ("", r"clearml-client --install-completion", "writes into the shell's start files"),
    ("examples/", r"python train\.py", "site"),
    ("", r"clearml-client |trainyard-lite |(CLEARML_QUEUE=\S+ )?python train\.py|make help", "unit"),
    ("", r"\.venv/bin/python -c |sqlite3 DATA", "unit"),
    ("", r"clearml-task |CLEARML_OFFLINE_MODE=1 python train\.py|python3 -m venv |\. |pip install \S*client", "site"),
    ("", r"make (login|status|preflight)\b", "site"),
    ("", r"docker (logs \S+-|ps |exec \S+-pruner)|curl |du |df ", "site"),
    ("", r"mkdir |cd |sqlite3 /|cp |rsync -a \S+files|rm |mv |docker run --rm --user", "site"),
    ("", r"docker compose \S* ?-|install |cat |SITE_DIR=\S+ docker buildx", "site"),
    ("", r"docker run --rm --gpus", "needs a GPU"),
    ("", r"docker exec -it ", "opens a shell; name=clearml-id- is how the worker finds the container itself"),
    ("", r"docker build ", "is an example: tests/perception builds docker/team"),
    ("", r"docker (run|logs|inspect|images|start|restart|compose)\b", "is a mention of the program"),
    ("", r"make (up|lint|unit|idempotence|perception|e2e|molecule|bench|test|test-all)\b", "is run by make test-all"),
    ("", r"make ", "changes a site, or takes minutes; molecule runs the playbook"),
    ("", r"ansible-playbook ", "is what make runs"),
    ("", r"\.venv/bin/python tests/", "takes minutes, or needs GPUs; tests/e2e/test_gpu_pin.py runs gpu_pin"),
    ("", r"(python -m|dvc|clearml-data|git|pip install) ", "is a mention of the program"),
    ("", r"(apt-get|npm|ssh-keyscan|journalctl|chmod|setfacl|grep|rsync|sqlite3) ", "is for a host that has the case"),
]
# Programs that not every machine has: on others they are no words of a sentence either.
PROGRAMS = {
    *("ansible-playbook", "ansible-vault", "clearml-agent", "clearml-client", "clearml-data", "clearml-task", "docker"),
    *("dvc", "kubectl", "make", "npm", "pip", "python", "python3", "rsync", "setfacl", "sqlite3", "systemctl"),
    "trainyard-lite",
}


@dataclass(frozen=True)
class Command:
    """Something to type; ``page`` is relative to the root, ``block`` the line of its block, or 0 in a sentence."""

    page: str
    line: int
    block: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def place(self) -> str:
        """Where it is run, or why nowhere; empty for a command that nobody thought of."""
        fits = (place for page, how, place in PLACES if self.page.startswith(page) and re.match(how, self.text))
        return next(fits, "")

    @cached_property
    def _all(self) -> list[str]:
        return shlex.split(self.text.replace("\\\n", " ").split("<<")[0], comments=True)

    @cached_property
    def words(self) -> list[str]:
        """The words without the assignments before them and the comment behind."""
        return self._all[len(self.variables) :]

    @cached_property
    def variables(self) -> dict[str, str]:
        """The assignments before the program."""
        found: dict[str, str] = {}
        for word in self._all:
            match = re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", word, re.DOTALL)
            if not match:
                break
            found[match[1]] = match[2]
        return found

    @property
    def folder(self) -> Path:
        """Where it is typed: the root, or the folder of a page whose words start with `From this folder`."""
        beside = (ROOT / self.page).parent
        return beside if "From this folder" in (ROOT / self.page).read_text() else ROOT


@dataclass(frozen=True)
class Snippet:
    """A block of code."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the pages of the repository, by their paths from its root."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [page for page in done.stdout.split() if (ROOT / page).is_file()]


def _inline(tokens: list[Token]) -> Iterator[tuple[int, Token]]:
    line = 0
    for token in tokens:
        line = token.map[0] + 1 if token.map else line
        for child in token.children or []:
            yield line, child


def snippets(*languages: str) -> list[Snippet]:
    """Return the blocks of code, of all languages or of some."""
    found = [
        Snippet(page, (token.map or [0])[0] + 1, token.info.strip(), token.content)
        for page in pages()
        for token in MARKDOWN.parse((ROOT / page).read_text())
        if token.type in {"fence", "code_block"}
    ]
    return [one for one in found if not languages or one.language in languages]


def spans() -> list[Snippet]:
    """Return the code in sentences."""
    return [
        Snippet(page, line, "", child.content)
        for page in pages()
        for line, child in _inline(MARKDOWN.parse((ROOT / page).read_text()))
        if child.type == "code_inline"
    ]


def links() -> list[tuple[Snippet, str]]:
    """Return the links and pictures that stay in the repository."""
    found = []
    for page in pages():
        for line, child in _inline(MARKDOWN.parse((ROOT / page).read_text())):
            target = str(child.attrs.get("href") or child.attrs.get("src") or "")
            if target and "://" not in target:
                found.append((Snippet(page, line, "", target), target))
    return found


def anchors(path: Path) -> set[str]:
    """Return the names of a page's headings, as links have them."""
    tokens = MARKDOWN.parse(path.read_text())
    heads = [tokens[place + 1] for place, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(child.content for child in head.children or []) for head in heads]
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in texts}


def lines(script: str) -> Iterator[tuple[int, str]]:
    """Return the commands of a script with their lines: a continued line and a here-document are one command."""
    rest = list(enumerate(script.splitlines()))
    while rest:
        number, text = rest.pop(0)
        while text.endswith("\\") and rest:
            text += "\n" + rest.pop(0)[1]
        if here := re.search(r"<<'?(\w+)'?", text):
            while rest:
                text += "\n" + rest.pop(0)[1]
                if text.endswith("\n" + here[1]):
                    break
        if text.strip() and not text.lstrip().startswith("#"):
            yield number, text.strip()


def commands() -> list[Command]:
    """Return all that the pages tell to type, in their order."""
    found = [
        Command(block.page, block.line + 1 + number, block.line, part)
        for block in snippets("sh")
        for number, text in lines(block.text)
        for part in re.split(r" && ", text)
    ]
    for span in spans():
        try:
            command = Command(span.page, span.line, 0, span.text)
            words = command.words
        except ValueError:  # a quotation mark by itself
            continue
        if len(words) > 1 and re.fullmatch(r"[.\w/-]+", words[0]) and (words[0] in PROGRAMS or shutil.which(words[0])):
            found.append(command)
    return found
