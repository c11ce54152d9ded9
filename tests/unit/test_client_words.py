"""What a user does wrong is a ClearmlClientError with what to write, and never a traceback of the SDK."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clearml.backend_interface.metrics.reporter import Reporter
from clearml_client import ClearmlClientError, _sdk, init_clearml
from clearml_client._config import Settings
from clearml_client._given import check_parts, checked_output_uri, checked_project
from clearml_client._storable import check_key, storable, storable_name
from conftest import Lite

LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"task_name": "a\tb c"}, "task_name: 'a\\tb c' has characters that cannot be shown"),
        ({"task_name": "nul\x00"}, "cannot be shown ('\\x00'): leave them out"),
        ({"task_name": LONG}, "is 300 bytes long: shorten it to 200"),
        ({"task_name": "é" * 101}, "is 202 bytes long"),
        ({"task_name": "\udcff" * 3}, "is not valid Unicode"),
        ({"task_name": "a/../b"}, "has a part . or .."),
        ({"task_name": "..\\x"}, "has a part . or .."),
        ({"project": "team/tra\nining"}, "project: 'team/tra\\nining' has characters"),
        ({"project": 7}, "project: expected a name, such as 'perception/training', got 7"),
        ({"project": "/".join(["part"] * 11)}, "has 11 parts, and the server takes 10"),
        ({"project": "aaa//bbb"}, "with no empty part, got 'aaa//bbb': write 'aaa/bbb'"),
        ({"project": "team/" + LONG}, "shorten it to 200"),
        ({"kind": "a/b"}, "kind: 'a/b' has a slash"),
        ({"kind": 3}, "kind: expected a name"),
        ({"queue": 3}, "queue: expected the name of a queue, such as 'all_gpus', or None, got 3"),
        ({"queue": ["a"]}, "queue: expected the name of a queue"),
        ({"tags": None}, "tags: expected a list of strings, such as ['lidar'], got None"),
        ({"tags": {"a": 1}}, "tags: expected a list"),
        ({"tags": ["a\nb"]}, "tags: 'a\\nb' has characters that cannot be shown"),
        ({"output_uri": "s4://bucket"}, "begins with 's4://', and there is http://, https://, s3://, gs://"),
        ({"output_uri": "ftp://host/x"}, "begins with 'ftp://'"),
        ({"output_uri": "s3://"}, "names no host or bucket"),
        ({"output_uri": ""}, "output_uri: expected True for the site's file server"),
        ({"output_uri": 5}, "got 5"),
        ({"output_uri": None}, "got None"),
        ({"output_uri": "http://[x"}, "is not an address"),
    ],
)
def test_what_was_given_is_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ClearmlClientError) as caught:
        init_clearml(**{"task_name": "a name", "project": "team/training", **arguments})
    assert told in str(caught.value)


@pytest.mark.parametrize("project", ["cv/training", "team/ab", "a", "team/training/x"])
def test_each_part_of_a_project_is_checked_as_the_server_does(project: str, lite: Lite) -> None:
    with pytest.raises(ClearmlClientError, match="from 3 characters on, for each part of the path: write"):
        check_parts(project)
    assert lite.error("projects.create", name=project) == (400, 12)


def test_what_the_server_takes_is_taken(lite: Lite, tmp_path: Path) -> None:
    for name in ("team/training", "größe/ab cd", "a.b.c"):
        check_parts(name)
        assert checked_project(f" {name} ", None, Settings(), needed=True) == name
        lite("projects.create", name=name)
    for uri in (True, False, "s3://bucket/x", "file:///x", "/x", "x", "azure://a.blob.core.windows.net/b"):
        assert checked_output_uri(uri) == uri
    assert checked_output_uri(tmp_path) == str(tmp_path)


def test_lite_takes_the_names_that_the_official_server_takes(lite: Lite) -> None:
    made = lite("projects.create", name="/team// training /")["id"]
    assert lite("projects.get_by_id", project=made)["project"]["name"] == "team/training"
    assert lite.error("projects.create", name="team/training")[0] == 400
    assert lite.error("projects.create", name="team/ /training")[0] == 400
    assert lite.error("projects.create", name="//")[0] == 400


# --- a server --------------------------------------------------------------------------------------------------------


def started(folder: Path, conf: str) -> tuple[int, str]:
    (folder / "clearml.conf").write_text(conf)
    (folder / "train.py").write_text(
        "from clearml_client import init_clearml\ninit_clearml('a name', project='team/training', queue='all_gpus')\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML_", "TRAINS_"))}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env={**kept, "CLEARML_CONFIG_FILE": str(folder / "clearml.conf")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


def conf_for(address: str, **more: Any) -> str:
    servers = {f"{name}_server": address for name in ("api", "web", "files")}
    return json.dumps({"api": {**servers, "credentials": {"access_key": "a", "secret_key": "b"}, **more}})


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        (conf_for("http://127.0.0.1:1"), "the ClearML server at http://127.0.0.1:1 (api_server in "),
        ("api { broken {{{", "clearml.conf cannot be read: mend it"),
        ("{}", "ClearML is not configured on this machine"),
    ],
)
def test_what_does_not_answer_is_told(tmp_path: Path, conf: str, told: str) -> None:
    code, err = started(tmp_path, conf)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"{tmp_path}/train.py:2: clearml_client: ")
    assert told in line


# --- names of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *("", " ", ".", "..", "a/../b", "a\\..\\b", "a//b", "/a", "a/", "tab\tx", "a\nb", "\x00", "\x7f", "\u200b"),
        *("\u202e", "\udcff", LONG, None, 3, b"a"),
    ],
)
def test_keys_that_would_not_be_found_again_are_refused(key: object) -> None:
    with pytest.raises(ClearmlClientError, match="artifact: "):
        check_key("artifact", key)


@pytest.mark.parametrize(
    "key", ["a b", " a", "a ", "per%cent", "%2e%2e", "größe", "e\u0301", "a/b", "a\\b", "...", "'\""]
)
def test_other_keys_are_taken(key: str) -> None:
    assert check_key("artifact", key) == key


def test_files_have_names_that_can_be_stored() -> None:
    assert storable("a/../b\t\\x") == "a/0x2e0x2e/b0x090x5cx"
    assert storable("x.y") == "x.y"
    name = storable_name("ä" * 300 + ".ckpt.gz")
    assert len(name.encode()) <= 200
    assert name.endswith(".ckpt.gz")
    assert name != storable_name("ä" * 301 + ".ckpt.gz")


def test_values_that_are_no_numbers_are_gaps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[float] = []
    monkeypatch.setattr(Reporter, "report_scalar", lambda self, title, series, value, iter: sent.append(value))
    _sdk._leave_gaps_in_curves()
    reporter: Any = object.__new__(Reporter)
    for iteration, value in enumerate([1.0, math.nan, math.inf, -math.inf, "2", 3]):
        reporter.report_scalar("loss", "train", value, iteration)
    assert sent == [1.0, "2", 3]
    assert capsys.readouterr().err.count("loss / train is nan at iteration 1: such values are left out") == 1
