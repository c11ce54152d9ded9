# Part of Trainyard.
"""The action behind the module secret_template: ansible.builtin.template, whose diff shows no secret."""

from __future__ import annotations

import re
from typing import Any

from ansible.plugins.action.template import ActionModule as TemplateActionModule

# What HOCON files of the server hold that is nobody's business: values of keys with such names, the user and the
# password of an address, and whatever looks generated.
_SECRETS = re.compile(
    r"""
    (?P<named>\b(?:\w*(?:secret|password|key|token)\w*|apiserver)"?\s*[:=]\s*")(?P<value>[^"]*)
    |(?P<scheme>://)(?P<credentials>[^/@\s"]*:[^/@\s"]*)(?=@)
    |(?<![\w/.+-])(?P<generated>(?=[\w+=-]*\d)(?=[\w+=-]*[A-Za-z])[\w+=-]{20,})(?![\w/.-])
    """,
    re.VERBOSE,
)


def mask(before: str, after: str) -> tuple[str, str]:
    """Give both texts without their secrets; one that ``before`` does not have is told as changed."""
    known: set[str] = set()

    def hide(match: re.Match[str], mark: str) -> str:
        if match["named"]:
            return match["named"] + mark
        if match["scheme"]:
            return match["scheme"] + mark
        return mark

    def secret(match: re.Match[str]) -> str:
        return match["value"] or match["credentials"] or match["generated"] or ""

    def old(match: re.Match[str]) -> str:
        known.add(secret(match))
        return hide(match, "***")

    def new(match: re.Match[str]) -> str:
        return hide(match, "***" if secret(match) in known else "*** (changed)")

    return _SECRETS.sub(old, before), _SECRETS.sub(new, after)


class ActionModule(TemplateActionModule):
    """Does what template does, then masks the diff."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Template the file and mask what the diff would tell."""
        result = super().run(tmp, task_vars)
        differences = result.get("diff") or []
        for difference in differences if isinstance(differences, list) else [differences]:
            before, after = difference.get("before"), difference.get("after")
            if isinstance(after, (str, bytes)):
                texts = (text.decode() if isinstance(text, bytes) else text or "" for text in (before, after))
                difference["before"], difference["after"] = mask(*texts)
        return result
