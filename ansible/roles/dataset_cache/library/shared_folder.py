#!/usr/bin/python
# Part of Trainyard.
"""Make folders in which everything that anybody makes belongs to one group, and may be changed by it."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: shared_folder
short_description: Make folders in which everything belongs to one group, and may be changed by it
description:
  - Owner root, mode 2775, and a default access list that gives the group the right to write. setgid alone gives new
    files the group, but a umask of 022 takes its right to write away; a default list takes the umask's place, and
    new folders inherit it.
  - Needs no tool on the host. Where a folder was there before and has no such list yet, the folders below it are opened
    too; files are not, because nothing writes into a file of a cache again.
options:
  paths:
    description: The folders; missing ones are made with all above them.
    type: list
    elements: path
    required: true
  gid:
    description: Number of the group.
    type: int
    required: true
"""

RETURN = r"""
without_lists:
  description: Folders whose disk knows no access lists.
  type: list
  returned: always
opened:
  description: How many folders that were there before were opened to the group.
  type: int
  returned: always
"""

NAME = "system.posix_acl_default"
# linux/posix_acl_xattr.h: version 2, then entries of tag, rights and id.
VERSION, NOBODY = 2, 0xFFFFFFFF
OWNER, GROUP, MASK, OTHER = 0x01, 0x04, 0x10, 0x20
ALL, READ = 7, 5
MODE = 0o2775


def wanted(present: bytes | None) -> bytes:
    """Give a default list in which the group may write; what else a list had stays."""
    entries = [(OWNER, ALL, NOBODY), (GROUP, ALL, NOBODY), (OTHER, READ, NOBODY)]
    if present:
        entries = list(struct.iter_unpack("<HHI", present[4:]))
        entries = [(tag, ALL if tag in (GROUP, MASK) else rights, who) for tag, rights, who in entries]
    return struct.pack("<I", VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def get_list(place: int | str) -> bytes | None:
    """Give a folder's default list, None without one.

    Raises:
        OSError: its disk knows none.
    """
    try:
        return os.getxattr(place, NAME)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def open_below(path: str, gid: int) -> int:
    """Open all folders of a folder to the group, following no link; give how many."""
    count = 0
    for _, _, _, handle in os.fwalk(path, follow_symlinks=False):
        facts = os.fstat(handle)
        if facts.st_gid != gid:
            os.fchown(handle, -1, gid)
        os.fchmod(handle, stat.S_IMODE(facts.st_mode) | 0o2070)
        try:
            os.setxattr(handle, NAME, wanted(get_list(handle)))
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
        count += 1
    return count


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "gid": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    gid = module.params["gid"]
    changed, without, opened = [], [], 0
    for path in module.params["paths"]:
        try:
            folder = Path(path)
            there = folder.is_dir()
            if not there:
                changed.append(path)
                if module.check_mode:
                    continue
                folder.mkdir(mode=0o755, parents=True)
            facts = folder.stat()
            try:
                present = get_list(path)
                listed = present == wanted(present)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
                without.append(path)
                listed = True
            right = (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (0, gid, MODE)
            if right and listed:
                continue
            if path not in changed:
                changed.append(path)
            if module.check_mode:
                continue
            opened += open_below(path, gid) - 1
            os.chown(path, 0, gid)
            folder.chmod(MODE)
        except OSError as error:
            module.fail_json(msg=f"{path}: {error.strerror}")
    module.exit_json(changed=bool(changed), changed_paths=changed, without_lists=without, opened=opened)


if __name__ == "__main__":
    main()
