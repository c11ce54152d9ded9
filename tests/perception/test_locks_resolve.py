"""The locks are what their groups resolve to: a group that was changed without `make lock` is found here.

    .venv/bin/pytest tests/perception/test_locks_resolve.py

Asks the site's package index for every Python and variant; changes no file of the repository.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from perception import LOCKS, compile_lock, pins

NAMES = sorted(path.stem for path in LOCKS.glob("3.*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_lock_is_what_its_groups_need(name: str, tmp_path: Path) -> None:
    committed, resolved = LOCKS / f"{name}.txt", tmp_path / f"{name}.txt"
    shutil.copyfile(committed, resolved)
    compile_lock(name.split("-")[0], resolved)
    text = resolved.read_text()
    assert pins(text) == pins(committed.read_text())
    blocks = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins(text))
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
