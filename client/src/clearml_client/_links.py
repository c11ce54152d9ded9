"""Which datasets an experiment opened, kept in its configuration without anybody asking."""

from __future__ import annotations

import json
import threading
from typing import Any, Dict, Optional, Tuple

from clearml import Task

from ._lookup import CONFIGURATION, SECTION

__all__ = ["record"]

_opened: Dict[Tuple[str, str, str], Dict[str, Any]] = {}
_guard = threading.Lock()


def record(*, name: str, version: str, store: str = "clearml", **known: Any) -> None:
    """Note a dataset in the current experiment; nothing happens where there is none.

    Its version becomes the hyperparameter ``Datasets/<name>``, which can be searched for and compared; all that is
    known of it goes to the configuration object ``datasets``.

    Args:
        name: Name of the dataset.
        version: Its version, or the revision of the repository it came from.
        store: ``clearml`` or ``dvc``.
        known: Further facts, such as ``hash``, ``dataset_id``, ``path``, ``repository``, ``revision``.
    """
    task: Optional[Task] = Task.current_task()
    if task is None:
        return
    entry = {"name": name, "version": version, "store": store, **known}
    key = (task.id, name, "{}@{}".format(version, known.get("path", "")))
    with _guard:
        if _opened.get(key) == entry:
            return
        _opened[key] = entry
        entries = [kept for (owner, _, _), kept in _opened.items() if owner == task.id]
        task.set_parameter("{}/{}".format(SECTION, name), version)
        task.set_configuration_object(CONFIGURATION, config_text=json.dumps(entries, indent=2, sort_keys=True))
