"""The last look before the queue: what the server has recorded of an experiment makes what is here."""

from __future__ import annotations

import posixpath
import sys
from typing import Any, List, Optional

from clearml import Task
from clearml.backend_interface.task.repo.util import remove_user_pass_from_url

from ._command_line import module_of
from ._errors import ClearmlClientError
from ._git import Code, at_remote, differs, holds, on_this_machine

__all__ = ["check_recorded"]


def check_recorded(task: Task, code: Code, queue: str) -> None:
    """Prove that the recorded commit, changes, remote and script are the code that is here; mend the changes.

    Args:
        task: The experiment, as the SDK has registered it.
        code: What is here; an agent can have it.
        queue: The queue that the experiment goes to, for the message.

    Raises:
        ClearmlClientError: It is not what is here. The experiment has been deleted then.
    """
    task.reload()
    reasons = _problems(task, code)
    if reasons:
        _delete(task)
        raise ClearmlClientError(
            "the run cannot go to the queue {!r}, what was recorded is not the code that is here:\n- {}".format(
                queue, "\n- ".join(reasons)
            )
        )
    folder = on_this_machine(code)
    if folder:
        _say("the remote {} is a folder: the nodes of the queue need it in the same place".format(folder))


def _problems(task: Task, code: Code) -> List[str]:
    script = task.data.script
    commit, address = str(script.version_num or ""), str(script.repository or "")
    if not address or not commit:
        return [
            "no repository was recorded, but the script alone (Task.force_store_standalone_script, or a git that "
            "the SDK cannot run)"
        ]
    reasons = []
    told = differs(code, commit, str(script.diff or ""))
    if told is not None:
        told = _mended(task, code, commit)
    if told is not None:
        reasons.append(told)
    # Of the address that was asked already the SDK takes user and password away.
    asked = commit == code.commit and address == remove_user_pass_from_url(code.address or "")
    told = None if asked else at_remote(code, address, commit)
    if told is not None:
        reasons.append(told)
    told = _missing_script(code, str(script.working_dir or "."), str(script.entry_point or ""))
    if told is not None:
        reasons.append(told)
    return reasons


def _mended(task: Any, code: Code, commit: str) -> Optional[str]:
    """Record the changes that make what is here; tell why this is not possible."""
    if not task._store_diff:
        return (
            "uncommitted changes are not recorded here (sdk.development.store_uncommitted_code_diff of clearml.conf): "
            "commit and push"
        )
    told = differs(code, commit, code.diff)
    if told is not None:
        return "{}; CLEARML_VCS_COMMIT_ID and the like change what is recorded, unset them".format(told)
    script = task.data.script
    script.diff = code.diff
    task._edit(script=script)
    task.reload()
    return differs(code, commit, str(task.data.script.diff or ""))


def _missing_script(code: Code, folder: str, entry: str) -> Optional[str]:
    """Tell whether an agent would not have the folder or the script that it starts."""
    folder = posixpath.normpath(folder)
    if folder != "." and not holds(code, folder):
        return (
            "the working directory {} is in none of the repository's files, agents do not have it: start the script "
            "from another one".format(folder)
        )
    if not entry:
        return None
    if entry.startswith("-m "):
        module = module_of(entry)
        return None if module is None else _missing_module(code, folder, module)
    path = posixpath.normpath(posixpath.join(folder, entry))
    if not path.startswith("../") and not posixpath.isabs(path) and holds(code, path):
        return None
    return "the script {} is not a file of the repository {}: agents do not get it".format(path, code.root)


def _missing_module(code: Code, folder: str, module: str) -> Optional[str]:
    """Tell whether ``python -m`` would find no such module in the folder, but perhaps an older one in the image."""
    path = module.replace(".", "/") + ".py"
    if holds(code, posixpath.normpath(posixpath.join(folder, path))):
        return None
    return (
        "agents start `python -m {}` in the folder {} of the repository, which has no {}: start it here from the "
        "folder in which that path begins".format(module, folder, path)
    )


def _delete(task: Task) -> None:
    try:
        task.close()
        task.delete(delete_artifacts_and_models=False, raise_on_error=False)
    except Exception as error:  # what is wrong with the code is the message that counts
        _say("the experiment {} could not be deleted: {}".format(task.id, error))


def _say(text: str) -> None:
    print("clearml_client: {}".format(text), file=sys.stderr, flush=True)
