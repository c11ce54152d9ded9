"""init_clearml against a real lite server: queue, code, ranks, logging, links."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from clearml import Task
from clearml_api import ClearmlApi
from clearml_client import ClearmlClientError
from clearml_client._config import load
from clearml_client._git import reasons_not_reproducible
from clearml_client._logging import show_records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import Server

HEAD = "from clearml_client import init_clearml\n"


class Site:
    """A server, somebody's clearml.conf, and a repository that is pushed."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        values = {
            "api": {
                **{f"{name}_server": url for name, url in server.urls.items()},
                "credentials": {"access_key": server.key, "secret_key": server.secret},
            },
            "sdk": {"storage": {"cache": {"default_base_dir": str(folder / "sdk-cache")}}},
        }
        (folder / "clearml.conf").write_text(json.dumps(values))
        self.bare, self.tree = folder / "bare.git", folder / "tree"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", self.bare], check=True)
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", self.tree], check=True)
        self.git("remote", "add", "origin", f"file://{self.bare}")
        (self.tree / ".gitignore").write_text("ignored\n")

    def git(self, *words: str) -> None:
        command = ["git", "-C", str(self.tree), "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
        subprocess.run(command, check=True, capture_output=True)

    def write(self, script: str, pyproject: str = "", push: bool = True) -> None:
        (self.tree / "train.py").write_text(HEAD + script)
        (self.tree / "pyproject.toml").write_text(pyproject)
        if push:
            self.git("add", ".")
            self.git("commit", "--quiet", "--message=Change")
            self.git("push", "--quiet", "origin", "main")

    def start(self, *words: str, before: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML_", "TRAINS_"))}
        return subprocess.Popen(
            [sys.executable, *before, "train.py", *words],
            cwd=self.tree,
            env={**kept, "CLEARML_CONFIG_FILE": str(self.folder / "clearml.conf"), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, before: Sequence[str] = (), **variables: str) -> tuple[int, str, str]:
        process = self.start(*words, before=before, **variables)
        out, err = process.communicate(timeout=120)
        print(out)  # for whoever looks at a failure
        return process.returncode, out, err

    def tasks(self) -> list[dict[str, Any]]:
        with self.server.login() as api:
            return list(api.call("tasks.get_all", order_by=["created"])["tasks"])


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Run a server that has the queue all_gpus."""
    made = Server(folder)
    made.start()
    with made.login() as api:
        api.call("queues.create", name="all_gpus")
    yield made
    made.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, server: Server) -> Iterator[Site]:
    yield Site(tmp_path, server)
    with server.login() as api:
        for task in api.call("tasks.get_all", only_fields=["id"])["tasks"]:
            api.call("tasks.delete", task=task["id"], force=True)


def console(api: ClearmlApi, task: str) -> list[str]:
    events = api.call("events.get_task_log", task=task, batch_size=1000, order="asc")["events"]
    return [line for event in events for line in str(event["msg"]).splitlines()]


# --- a queue ---------------------------------------------------------------------------------------------------------

PARSER = """
import argparse
task = init_clearml("parsed", {arguments})
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float, default=0.5)
print("rate", parser.parse_args().rate)
print("trained here")
"""


def test_a_run_with_a_queue_goes_there_with_its_arguments(site: Site) -> None:
    site.write(
        PARSER.format(arguments="queue='all_gpus'"),
        '[tool.clearml_client]\nteam = "perception"\npython = "3.12"\nimages = {"3.12" = "site/perception:3.12"}\n',
    )
    code, out, err = site.run("--rate", "0.25")
    assert code == 0, err
    assert "trained here" not in out
    assert "to the queue 'all_gpus': experiment 'parsed', http" in err
    (task,) = site.tasks()
    assert task["status"] == "queued"
    assert task["hyperparams"]["Args"]["rate"]["value"] == "0.25"
    assert task["container"]["image"] == "site/perception:3.12"
    assert task["script"]["version_num"]
    assert task["script"]["entry_point"] == "train.py"


def test_a_run_without_arguments_goes_at_once(site: Site) -> None:
    site.write(PARSER.format(arguments="project='team/training'"))
    code, out, err = site.run(CLEARML_QUEUE="all_gpus", CLEARML_CLIENT_IMAGE="site/perception:{python}-cpu")
    assert code == 0, err
    assert "rate" not in out
    (task,) = site.tasks()
    assert task["status"] == "queued"
    assert task["container"]["image"] == "site/perception:{}.{}-cpu".format(*sys.version_info[:2])


@pytest.mark.parametrize("image", ["--volume=/:/host", "ubuntu bash", "Ubuntu", "ubuntu\n", "$(id)"])
def test_what_is_not_one_image_is_told_before_anything_is_sent(site: Site, image: str) -> None:
    site.write(PARSER.format(arguments=f"project='team/training', queue='all_gpus', image={image!r}"))
    code, out, err = site.run()
    assert code != 0
    assert f"image is {image!r}, which is not the name of one image" in err
    assert "trained here" not in out
    assert site.tasks() == []


def test_the_site_s_image_is_checked_too(site: Site) -> None:
    site.write(PARSER.format(arguments="project='team/training'"))
    code, _, err = site.run(CLEARML_QUEUE="all_gpus", CLEARML_CLIENT_IMAGE="site/perception {python}")
    assert code != 0
    assert "CLEARML_CLIENT_IMAGE is 'site/perception 3." in err
    assert site.tasks() == []


def test_a_changed_file_travels_as_a_diff(site: Site) -> None:
    site.write(PARSER.format(arguments="project='team/training', queue='all_gpus'"))
    site.write(PARSER.format(arguments="project='team/training', queue='all_gpus'") + "# changed\n", push=False)
    code, _, err = site.run()
    assert code == 0, err
    (task,) = site.tasks()
    assert "+# changed" in task["script"]["diff"]


def test_a_run_without_a_queue_stays_here(site: Site) -> None:
    site.write(PARSER.format(arguments=""), '[tool.clearml_client]\nteam = "perception"\n')
    code, out, err = site.run("--rate", "0.25")
    assert code == 0, err
    assert "trained here" in out
    assert "on this machine: experiment 'parsed', http" in err
    (task,) = site.tasks()
    assert task["status"] == "completed"


def test_an_unknown_queue_is_told_before_anything_is_registered(site: Site) -> None:
    site.write(PARSER.format(arguments="project='team/training', queue='all_gpu'"))
    code, _, err = site.run()
    assert code == 1
    assert "no queue 'all_gpu' on the server; did you mean all_gpus?" in err
    assert site.tasks() == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("untracked", "git does not track helper.py: add what the run needs"),
        ("binary", "the changed binary weights.bin cannot travel in a diff"),
        ("unpushed", "is in no branch of the remote, agents could not fetch it: `git push origin main`"),
        ("large", "characters long, and at most 500,000 are kept"),
        ("submodule", "the submodule part has changed"),
        ("no remote", "has no remote that agents could fetch from"),
    ],
)
def test_code_that_no_agent_could_run_is_told(site: Site, spoil: str, told: str) -> None:
    (site.tree / "weights.bin").write_bytes(b"\0\1\2")
    site.write("")
    assert reasons_not_reproducible(site.tree) == []
    (site.tree / "ignored").write_text("nobody minds\n")
    (site.tree / "train.py").write_text("a changed text travels\n")
    assert reasons_not_reproducible(site.tree) == []
    if spoil == "untracked":
        (site.tree / "helper.py").write_text("x = 1\n")
    elif spoil == "binary":
        (site.tree / "weights.bin").write_bytes(b"\0\1\3")
    elif spoil == "unpushed":
        site.git("commit", "--quiet", "--allow-empty", "--message=Mine")
    elif spoil == "large":
        (site.tree / "pyproject.toml").write_text("# " + "x" * 500_001 + "\n")
    elif spoil == "submodule":
        site.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", f"file://{site.bare}", "part")
        site.git("commit", "--quiet", "--all", "--message=Part")
        site.git("push", "--quiet", "origin", "main")
        (site.tree / "part" / "train.py").write_text("changed\n")
    else:
        site.git("remote", "remove", "origin")
    (reason,) = reasons_not_reproducible(site.tree)
    assert told in reason


def test_code_that_no_agent_could_run_is_refused_before_anything_is_registered(site: Site) -> None:
    site.write(PARSER.format(arguments="project='team/training', queue='all_gpus'"))
    (site.tree / "helper.py").write_text("x = 1\n")
    code, _, err = site.run()
    assert code == 1
    assert "the run cannot go to the queue 'all_gpus', agents could not run this code:" in err
    assert "helper.py" in err
    assert site.tasks() == []


def test_code_that_cannot_be_reproduced_is_only_a_warning_here(site: Site) -> None:
    site.write(PARSER.format(arguments="project='team/training'"), push=False)
    code, out, err = site.run()
    assert code == 0, err
    assert "this run cannot be reproduced from git: the repository" in err
    assert "trained here" in out


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("quue = 'x'", "[tool.clearml_client] quue is unknown; there are dataset_project"),
        ("team = 3", "[tool.clearml_client] team is 3; write a text in quotes"),
        ("team = 'a/b'", "[tool.clearml_client] team is 'a/b'; it is one part of a path"),
        ("python = '3'", "[tool.clearml_client] python is '3'; write a version in quotes, such as '3.11'"),
        (
            "image = '--volume=/:/host'",
            "[tool.clearml_client] image is '--volume=/:/host', which is not the name of one image",
        ),
        ("image = 'ubuntu --privileged'", "for example 'registry.example.com/team/train:1.0'"),
        ("images = {'3.11' = 'Ubuntu'}", "[tool.clearml_client] images for 3.11 is 'Ubuntu', which is not"),
        ("images = ['x']", """[tool.clearml_client] images is ['x']; write {"3.11" = "IMAGE"}"""),
        ("team = ", "pyproject.toml: Invalid value"),
    ],
)
def test_a_mistake_in_pyproject_is_told(tmp_path: Path, table: str, told: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.clearml_client]\n{table}\n")
    (tmp_path / "src").mkdir()
    with pytest.raises(ClearmlClientError) as caught:
        load(tmp_path / "src")
    assert told in str(caught.value)


def test_clearml_that_was_used_before_is_told(site: Site) -> None:
    site.write(
        "from clearml import Task\n"
        "first = Task.init('team/training', 'first')\n"
        "assert init_clearml('second', project='team/training').id == first.id\n"
    )
    code, _, err = site.run()
    assert code == 0, err
    assert "ClearML was used before init_clearml: this run stays the experiment 'first'" in err
    assert [task["name"] for task in site.tasks()] == ["first"]


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="any launcher"),
        # torchrun sets TORCHELASTIC_ERROR_FILE too, others that name its run do not.
        pytest.param({"TORCHELASTIC_RUN_ID": "a run"}, id="a run of torchrun"),
    ],
)
def test_the_ranks_of_one_launch_are_one_experiment(site: Site, more: dict[str, str]) -> None:
    site.write(
        "import logging, os, time\n"
        "rank = int(os.environ['RANK'])\n"
        "task = init_clearml('ranks', project='team/training')\n"
        "open(f'joined {rank}', 'w').close()\n"
        "while not all(os.path.exists(f'joined {other}') for other in range(3)): time.sleep(0.1)\n"
        "task.get_logger().report_scalar('loss', f'rank {rank}', value=rank, iteration=1)\n"
        "print('hello from', rank)\n"
        # Rank 0 is the first to end: the experiment stays open until all have reported.
        "time.sleep(4 * rank)\n"
        "task.get_logger().report_scalar('loss', f'rank {rank}', value=rank, iteration=2)\n"
        "print('first line', rank, '\\nsecond line', rank)\n"
        "logging.info('a record\\nof two lines')\n"
    )
    launch = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", **more}
    processes = [site.start(RANK=str(rank), LOCAL_RANK=str(rank), **launch) for rank in range(3)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in ended] == [0, 0, 0], ended
    (task,) = site.tasks()
    assert task["status"] == "completed"
    with site.server.login() as api:
        lines = console(api, task["id"])
        curves = api.call("events.scalar_metrics_iter_histogram", task=task["id"])
    assert {name: curve["x"] for name, curve in curves["loss"].items()} == {f"rank {n}": [1, 2] for n in range(3)}
    for rank in range(3):
        assert f"[rank {rank}] hello from {rank}" in lines
        assert f"[rank {rank}] second line {rank}" in lines
        assert f"[rank {rank}] of two lines" in lines
        out, err, _ = ended[rank]
        assert f"[rank {rank}] second line {rank}" in out.splitlines()
        assert [line.startswith(f"[rank {rank}] 2") for line in err.splitlines() if "a record" in line] == [True]
        assert f"[rank {rank}] of two lines" in err.splitlines()
    assert sum("experiment 'ranks'" in err for _, err, _ in ended) == 1, "said once"


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch; its CPU build is Debian's python3-torch, 150 MB")
def test_torchrun(site: Site) -> None:
    site.write(
        "import logging, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "task = init_clearml('ranks', project='team/training')\n"
        "rank = dist.get_rank()\n"
        "logging.info('a record of %d', rank)\n"
        "print('hello from', rank)\n"
        "dist.barrier()\n"
    )
    # Of 0 and 3, its defaults, torch 1.13 makes None on Python 3.11.
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--redirects=1", "--tee=1")
    code, _, err = site.run("--rate", "1", before=launch)
    assert code == 0, err
    (task,) = site.tasks()
    assert task["status"] == "completed"
    assert task["script"]["entry_point"] == " ".join((*launch, "train.py"))
    with site.server.login() as api:
        lines = console(api, task["id"])
    for rank in range(2):
        assert f"[rank {rank}] hello from {rank}" in lines
        assert [line[:9] for line in lines if line.endswith(f"a record of {rank}")] == [f"[rank {rank}] "]


# --- the console -----------------------------------------------------------------------------------------------------


def test_records_reach_the_console_once_with_their_level_and_bars_do_not_flood_it(site: Site) -> None:
    site.write(
        "import logging, multiprocessing, time\n"
        "from tqdm import tqdm\n"
        "task = init_clearml('logs', project='team/training')\n"
        "logging.getLogger('loader').warning('slow disk')\n"
        "logging.info('an epoch')\n"
        "def work():\n"
        "    logging.getLogger('loader').error('broken picture'); time.sleep(4)\n"
        "process = multiprocessing.get_context('fork').Process(target=work, name='worker-1')\n"
        "process.start(); process.join()\n"
        "for _ in tqdm(range(1000), mininterval=0.0): time.sleep(0.001)\n"
        "print('done')\n"
    )
    code, _, err = site.run()
    assert code == 0, err
    (task,) = site.tasks()
    with site.server.login() as api:
        lines = console(api, task["id"])
        events = api.call("events.get_task_log", task=task["id"], batch_size=1000)["events"]
    assert [line.split(" ", 2)[2] for line in lines if "slow disk" in line] == ["WARNING loader: slow disk"]
    assert [line.split(" ", 2)[2] for line in lines if "an epoch" in line] == ["INFO root: an epoch"]
    assert err.count("an epoch") == 1
    assert {event["level"] for event in events if "slow disk" in event["msg"]} == {"warning"}
    assert [line.split(" ", 2)[2] for line in lines if "broken" in line] == ["ERROR worker: 1 loader: broken picture"]
    bars = [line for line in lines if "1000/1000" in line or "/1000 [" in line]
    assert 1 <= len(bars) <= 5, bars
    assert "1000/1000" in bars[-1]
    assert "done" in lines


# What a script does with logging, before and after init_clearml, and what is to be seen: {} stands for a time.
HANDLER = "handler = logging.StreamHandler(); handler.setFormatter(logging.Formatter('own %(message)s'))\n"
LOGGING = {
    "nothing": ("", "", ["{} INFO root: said", "{} INFO part: said too"]),
    "configured before": (
        "logging.basicConfig(level='INFO', format='own %(message)s')\n",
        "",
        ["own said", "own said too"],
    ),
    "configured before, for warnings": ("logging.basicConfig()\n", "", []),
    "configured after": (
        "",
        "logging.basicConfig(level='INFO', format='own %(message)s')\n",
        ["own said", "own said too"],
    ),
    "configured after, for warnings": ("", "logging.basicConfig(format='own %(message)s')\n", []),
    "a logger of its own": (
        "",
        HANDLER + "logging.getLogger('part').addHandler(handler)\n",
        ["{} INFO root: said", "own said too"],
    ),
    "a level of its own": ("logging.getLogger().setLevel('ERROR')\n", "", []),
    "dictConfig": (
        "",
        "import logging.config\n"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': False,\n"
        "    'formatters': {'own': {'format': 'own %(message)s'}},\n"
        "    'handlers': {'own': {'class': 'logging.StreamHandler', 'formatter': 'own'}},\n"
        "    'root': {'handlers': ['own'], 'level': 'INFO'}})\n",
        ["own said", "own said too"],
    ),
}


@pytest.mark.parametrize("where", ["here", "offline", "in a queue"])
@pytest.mark.parametrize("case", LOGGING)
def test_records_are_shown_once_and_a_scripts_own_logging_holds(
    case: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a child of this process: it is quick, and logging is one for a process."""
    before, after, wanted = LOGGING[case]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 2)
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # type: ignore[misc]  # noqa: SIM115
        root = logging.getLogger()
        root.handlers.clear()  # pytest's
        root.setLevel(logging.WARNING)
        monkeypatch.setattr(Task, "running_locally", lambda: where != "in a queue")
        monkeypatch.setattr(Task, "is_offline", lambda: where == "offline")
        exec(f"import logging\n{before}", {})
        show_records()
        exec(f"import logging\n{after}logging.info('said')\nlogging.getLogger('part').info('said too')\n", {})
        os._exit(0)
    os.close(write)
    with open(read) as stream:  # noqa: PTH123
        lines = stream.read().splitlines()
    os.waitpid(child, 0)
    assert [re.sub(r"^\d{4}-\d\d-\d\d [\d:,]+", "{}", line) for line in lines] == wanted


# --- datasets --------------------------------------------------------------------------------------------------------


def test_datasets_that_were_opened_are_kept_and_found_from_both_sides(site: Site) -> None:
    site.write(
        "from clearml_client._links import record\n"
        "from clearml import OutputModel\n"
        "from pathlib import Path\n"
        "task = init_clearml('links', project='team/training')\n"
        "record(name='kitti', version='1.4.0', dataset_id='d' * 32, hash='abc')\n"
        "record(name='kitti', version='1.4.0', dataset_id='d' * 32, hash='abc')\n"
        "record(name='maps.v2', version='2', store='dvc', path='data/maps', hash='def')\n"
        "Path('detector').write_text('weights')\n"
        "OutputModel(task=task, name='detector').update_weights('detector', auto_delete_file=False)\n"
    )
    code, _, err = site.run()
    assert code == 0, err
    (task,) = site.tasks()
    assert {name: item["value"] for name, item in task["hyperparams"]["Datasets"].items()} == {
        "kitti": "1.4.0",
        "maps.v2": "2",
    }

    def client(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "clearml_client", *words, "--json"],
            env={**os.environ, "CLEARML_CONFIG_FILE": str(site.folder / "clearml.conf")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    (model,) = client("models", "kitti")
    assert (model["model"], model["task"], model["dataset"]) == ("detector", "links", "kitti@1.4.0")
    assert client("models", "kitti@1.3.0") == []
    assert [row["model_id"] for row in client("models", "maps.v2@2")] == [model["model_id"]]
    for asked in (model["model_id"], task["id"]):
        assert [(row["name"], row["version"], row["hash"]) for row in client("datasets", asked)] == [
            ("kitti", "1.4.0", "abc"),
            ("maps.v2", "2", "def"),
        ]
    findings = {row["subject"]: row["state"] for row in client("doctor")}
    assert (findings["configuration"], findings["keys"], findings["files"]) == ("ok", "ok", "ok")


def test_forked_processes_have_connections_of_their_own(site: Site) -> None:
    """With the SDK alone some of these requests meet others on the parent's connection."""
    site.write(
        "import os\n"
        "task = init_clearml('forks', project='team/training')\n"
        "session = task._get_default_session()\n"
        "children = []\n"
        "for _ in range(4):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        codes = [session.send_request('tasks', 'get_by_id', json={'task': task.id}) for _ in range(50)]\n"
        "        os._exit(sum(not code.ok for code in codes) > 0)\n"
        "    children.append(child)\n"
        "print('exits', [os.waitpid(child, 0)[1] for child in children])\n"
    )
    code, out, err = site.run()
    assert code == 0, err
    assert "exits [0, 0, 0, 0]" in out
