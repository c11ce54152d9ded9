#!/usr/bin/python
# Part of Trainyard.
"""Tell a host's memory, free disk, and who listens on some ports."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_survey
short_description: Tell a host's memory, free disk, and who listens on some ports
description:
  - Changes nothing and needs no tool on the host beyond Python. Ports that Docker publishes are told with the compose
    project of their container.
options:
  ports:
    description: TCP ports to ask for.
    type: list
    elements: int
    default: []
  paths:
    description: Folders whose file system is asked for free space. Of one that is missing, its nearest parent.
    type: list
    elements: path
    default: []
"""

RETURN = r"""
memory_mb:
  description: The memory that this host may use.
  type: int
  returned: always
free_mb:
  description: Free space by path.
  type: dict
  returned: always
avx:
  description: Whether the processor has AVX, which MongoDB needs from version 5 on.
  type: bool
  returned: always
max_map_count:
  description: The kernel's limit of memory maps per process.
  type: int
  returned: always
ports:
  description: Of each port that is taken, the name of who listens and the compose project.
  type: dict
  returned: always
"""

LISTEN = "0A"


def listening(ports: set[int]) -> dict[int, str]:
    """Give the socket inode by listening port."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            port = int(fields[1].rsplit(":", 1)[1], 16)
            if fields[3] == LISTEN and port in ports:
                found.setdefault(port, fields[9])
    return found


def processes(inodes: set[str]) -> dict[str, str]:
    """Give the process's name and id by socket inode."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for handle in (process / "fd").iterdir():
                inode = wanted.get(str(handle.readlink()))
                if inode:
                    found[inode] = f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return found


def containers(module: AnsibleModule, port: int) -> tuple[str, str]:
    """Give the name and the compose project of the container that publishes a port."""
    docker = module.get_bin_path("docker")
    if not docker:
        return "", ""
    template = '{{.Names}}\t{{.Label "com.docker.compose.project"}}'
    code, output, _ = module.run_command([docker, "ps", "--filter", f"publish={port}", "--format", template])
    if code != 0 or not output.strip():
        return "", ""
    name, _, project = output.splitlines()[0].partition("\t")
    return name, project


def free_mb(path: str) -> int:
    """Give the free space of the file system that holds a path."""
    place = Path(path)
    while not place.exists():
        place = place.parent
    stats = os.statvfs(place)
    return stats.f_bavail * stats.f_frsize // 2**20


def memory_mb() -> int:
    """Give the memory, as limited by the control group of this process when it is."""
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total // 2**20


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "int", "default": []},
            "paths": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    taken = listening(set(module.params["ports"]))
    names = processes(set(taken.values()))
    ports = {}
    for port, inode in taken.items():
        name, project = names.get(inode, "a process that cannot be seen"), ""
        container, compose = containers(module, port)
        if container:
            name, project = f"the container {container}", compose
        ports[str(port)] = {"name": name, "project": project}
    module.exit_json(
        changed=False,
        memory_mb=memory_mb(),
        avx=bool(re.search(r"^flags\s*:.*\bavx\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)),
        max_map_count=int(Path("/proc/sys/vm/max_map_count").read_text()),
        free_mb={path: free_mb(path) for path in module.params["paths"]},
        ports=ports,
    )


if __name__ == "__main__":
    main()
