#!/usr/bin/python
# Part of Trainyard.
"""Keep one key pair, in one clearml.conf, for each person."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import COMPANY, CONNECTION_ARGUMENTS, Api, ApiError, UserApi

DOCUMENTATION = r"""
module: clearml_user_keys
short_description: Keep one key pair, in one clearml.conf, for each person
description:
  - Runs where the files are, on the controller, and asks the server for a token of each person. It needs no password.
  - A file whose key the server still knows is kept. A pair with this module's label that no file holds is revoked.
  - Who has a folder here but is not in O(users) has left. All their pairs are revoked, and the folder is removed.
  - Nothing secret is returned.
options:
  api_url:
    description: Address of the API.
    type: str
    required: true
  access_key:
    description: The key of an account with the role system.
    type: str
    required: true
  secret_key:
    description: Its secret.
    type: str
    required: true
  ca_path:
    description:
      - A PEM file with the site's own authority.
      - Everybody gets a copy of it, C(clearml-ca.pem), and the file names it.
    type: path
  timeout:
    description: Seconds to wait for a server that is just starting.
    type: int
    default: 60
  users:
    description: Usernames.
    type: list
    elements: str
    required: true
  rotate:
    description: Usernames that get a new pair, or V(all).
    type: list
    elements: str
    default: []
  folder:
    description: The file of a person is C(<folder>/<username>/clearml.conf).
    type: path
    required: true
  client_api_url:
    description: Address of the API in the files. O(api_url) without it.
    type: str
  web_url:
    description: Address of the page in the files.
    type: str
    required: true
  files_url:
    description: Address of the file server in the files.
    type: str
    required: true
  client_image:
    description: Image for experiments of repositories that name none, such as C(trainyard/perception:{python}-cpu).
    type: str
    default: ""
  package_indexes:
    description: Package indexes of experiments besides the default one; passwords in them are left out of the files.
    type: list
    elements: str
    default: []
"""

RETURN = r"""
users:
  description: What became of whom, as C(username), C(id), C(file), C(state) (kept, updated, made, rotated, removed).
  type: list
  returned: always
revoked:
  description: How many pairs were revoked.
  type: int
  returned: always
summary:
  description: The same as a table to print.
  type: list
  returned: always
"""

LABEL = "trainyard users.yml"
INVALID_USER_ID = 301
PAIR = re.compile(r'"access_key" = "([A-Za-z0-9]+)"\s+"secret_key" = "([^"\s]+)"')
MADE_BY = "made by Trainyard (ansible/users.yml)"
TEXT = """\
# {username}'s key pair, {made_by}. Put it at ~/clearml.conf and show it to nobody.
api {{
    web_server: "{web_url}"
    api_server: "{api_url}"
    files_server: "{files_url}"
{certificate}    credentials {{
        "access_key" = "{key}"
        "secret_key" = "{secret}"
    }}
}}
{packages}{environment}"""
AUTHORITY = "clearml-ca.pem"
CERTIFICATE = f"""\
    # The site has a certificate authority of its own: put {AUTHORITY}, which is beside this file, into your home too.
    # REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in your environment wins over this: add the authority to the file it names.
    verify_certificate: ${{HOME}}"/{AUTHORITY}"
"""
# The SDK's transfers of files do not read the above.
CERTIFICATE_ENVIRONMENT = f"""\
    CLEARML_API_HOST_VERIFY_CERT: ${{HOME}}"/{AUTHORITY}"
"""
IMAGE_ENVIRONMENT = """\
    # The site's image for repositories that name none (clearml_client).
    CLEARML_CLIENT_IMAGE: "{image}"
"""
PACKAGES = """\
# Where experiments find packages besides the default index: `clearml-client reproduce` asks there too.
agent {{
    package_manager {{
        extra_index_url: {indexes}
    }}
}}
"""
ENVIRONMENT = """\
environment {{
{lines}}}
sdk {{
    apply_environment: true
}}
"""


def user_id(username: str) -> str:
    """Give the id of a user from the configuration, as the server makes it."""
    return hashlib.md5(f"{COMPANY}:{username}".encode()).hexdigest()  # noqa: S324 (an id, not a secret)


class Keys:
    """The pairs of all people and their files."""

    def __init__(self, module: AnsibleModule) -> None:
        self._given, self._check = module.params, module.check_mode
        self._folder = Path(self._given["folder"])
        self.users: list[dict] = []
        self.revoked = 0

    def run(self) -> None:
        """Do it; every step may be interrupted and is completed by the next run."""
        wanted, rotate = self._given["users"], self._given["rotate"]
        if unknown := sorted(set(rotate) - {*wanted, "all"}):
            raise ApiError(f"rotate names {unknown[0]!r}, who is not in clearml_users: {', '.join(wanted) or 'nobody'}")
        left = sorted(
            {
                path.parent.name
                for path in self._folder.glob("*/clearml.conf")
                # Files that somebody else put there, and folders elsewhere, are not this module's.
                if not path.parent.is_symlink() and MADE_BY in path.read_text(errors="replace")
            }
            - set(wanted)
        )
        if not wanted and not left:
            return
        system = Api(self._given)
        people = {}
        for username in [*wanted, *left]:
            try:
                people[username] = UserApi(system, user_id(username))
            except ApiError as error:
                if error.subcode != INVALID_USER_ID:
                    raise
        absent = [username for username in wanted if username not in people]
        if absent and not self._check:
            raise ApiError(f"the server does not know {', '.join(absent)} yet; run ansible/server.yml first")
        # First: where case does not count in file names, the next may be the same person in another spelling.
        for username in left:
            if username in people:
                self._revoke(people[username], list(people[username].labels))
            if not self._check:
                self._forget(self._folder / username)
            self._report(username, "removed")
        for username in wanted:
            self._report(username, self._keep(username, people.get(username), {username, "all"} & set(rotate)))

    @staticmethod
    def _forget(folder: Path) -> None:
        """Remove what this module wrote for a person; the folder stays when it holds anything else."""
        for name in ("clearml.conf", AUTHORITY):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()

    def _report(self, username: str, state: str) -> None:
        path = str(self._folder / username / "clearml.conf")
        self.users.append({"username": username, "id": user_id(username), "file": path, "state": state})

    def _keep(self, username: str, person: UserApi | None, rotate: set[str]) -> str:
        path = self._folder / username / "clearml.conf"
        text = path.read_text(errors="replace") if path.exists() else ""
        found = PAIR.search(text)
        if person is None:
            return "made"  # in check mode: the account comes with the server's next start
        known = bool(found) and found[1] in person.labels
        if known and not rotate:
            pair, state = found.groups(), "kept"
            if self._write_both(path, self._text(username, *pair)):
                state = "updated"
        else:
            state = "rotated" if known else "made"
            pair = ("", "")
            if not self._check:
                new = person.call("auth.create_credentials", {"label": LABEL})["credentials"]
                pair = (new["access_key"], new["secret_key"])
                try:
                    self._write_both(path, self._text(username, *pair))
                except OSError:
                    person.call("auth.revoke_credentials", {"access_key": pair[0]})
                    raise
        # Only now, so that the file that people may have copied works until the new one is there.
        gone = {found[1]} if known and rotate else set()
        gone |= {key for key, label in person.labels.items() if label == LABEL and key != pair[0]}
        self._revoke(person, sorted(gone))
        return state

    def _revoke(self, person: UserApi, keys: list[str]) -> None:
        for key in keys:
            if not self._check:
                person.call("auth.revoke_credentials", {"access_key": key})
            self.revoked += 1

    def _text(self, username: str, key: str, secret: str) -> str:
        given = self._given
        lines = CERTIFICATE_ENVIRONMENT if given["ca_path"] else ""
        if given["client_image"]:
            lines += IMAGE_ENVIRONMENT.format(image=given["client_image"])
        indexes = [re.sub(r"://[^/]*@", "://", index) for index in given["package_indexes"]]
        return TEXT.format(
            username=username,
            made_by=MADE_BY,
            web_url=given["web_url"],
            api_url=given["client_api_url"] or given["api_url"],
            files_url=given["files_url"],
            certificate=CERTIFICATE if given["ca_path"] else "",
            packages=PACKAGES.format(indexes=json.dumps(indexes)) if indexes else "",
            environment=ENVIRONMENT.format(lines=lines) if lines else "",
            key=key,
            secret=secret,
        )

    def _write_both(self, path: Path, text: str) -> bool:
        """Write a person's file, and the site's authority beside it; tell whether anything changed."""
        authority = self._given["ca_path"]
        changed = bool(authority) and self._write(path.with_name(AUTHORITY), Path(authority).read_text())
        return self._write(path, text) or changed

    def _write(self, path: Path, text: str) -> bool:
        """Replace the file at once, readable by its owner only; tell whether anything changed."""
        before = path.read_text(errors="replace") if path.exists() else ""
        changed = False
        for folder in (self._folder, path.parent):
            if not folder.is_dir() or folder.stat().st_mode & 0o777 != 0o700:
                changed = True
                if not self._check:
                    folder.mkdir(parents=True, exist_ok=True)
                    folder.chmod(0o700)
        if text != before or path.stat().st_mode & 0o777 != 0o600:
            changed = True
            if not self._check:
                handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".clearml.")  # its mode is 0600
                try:
                    with os.fdopen(handle, "w") as stream:
                        stream.write(text)
                        stream.flush()
                        os.fsync(stream.fileno())
                    Path(temporary).replace(path)
                except BaseException:
                    Path(temporary).unlink(missing_ok=True)
                    raise
        return changed

    def summary(self) -> list[str]:
        """Give a table, and what to know of those who left."""
        rows = [("user", "keys", "file"), *((user["username"], user["state"], user["file"]) for user in self.users)]
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{name:<{wide[0]}}  {state:<{wide[1]}}  {path}" for name, state, path in rows]
        lines += [
            f"{user['username']}: keys revoked; their experiments stay, under the user id {user['id']}. "
            "The account itself goes when server.yml applies the list."
            for user in self.users
            if user["state"] == "removed"
        ]
        return lines


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "users": {"type": "list", "elements": "str", "required": True},
            "rotate": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "folder": {"type": "path", "required": True},
            "client_api_url": {"type": "str"},
            "web_url": {"type": "str", "required": True},
            "files_url": {"type": "str", "required": True},
            "client_image": {"type": "str", "default": ""},
            # A module's log would have their passwords.
            "package_indexes": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    keys = Keys(module)
    try:
        keys.run()
    except (ApiError, OSError) as error:
        module.fail_json(msg=str(error), users=keys.users, revoked=keys.revoked)
    changed = keys.revoked > 0 or any(user["state"] != "kept" for user in keys.users)
    module.exit_json(changed=changed, users=keys.users, revoked=keys.revoked, summary=keys.summary())


if __name__ == "__main__":
    main()
