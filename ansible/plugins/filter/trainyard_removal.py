# Part of Trainyard.
"""Filters that show what is removed from a host, and what stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["FilterModule"]


def _results(registered: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Return the results of site_folder, of tasks with and without a loop."""
    for result in registered:
        yield from (each for each in result.get("results", [result]) if not each.get("skipped"))


def trainyard_removal(
    registered: Sequence[Mapping[str, Any]],
    host: str,
    containers: Sequence[str],
    images: Sequence[str],
    caches: Sequence[str],
) -> list[str]:
    """Return what is removed from a host and what stays, a line each.

    Args:
        registered: what the tasks with site_folder (state planned) registered; {} for one that was skipped.
        host: the host, as the inventory names it.
        containers: of each container its name, compose folder, worker, and the worker that it is an experiment of.
        images: the site's images that go too.
        caches: the dataset caches of the host.
    """
    results = list(_results(registered))
    places = {place for result in results for place in result.get("places", [])}
    rows = [(line.split("\t") + [""] * 4)[:4] for line in containers]
    own = [row for row in rows if row[1] in places]
    workers = {row[2] for row in own if row[2]}
    lines = [f"{host}: stops and removes the container {row[0]}" for row in own]
    lines += [f"{host}: STOPS THE EXPERIMENT in the container {row[0]}" for row in rows if row[3] and row[3] in workers]
    lines += [
        f"{host}: removes {line['path']} ({line['size']})" for result in results for line in result.get("removes", [])
    ]
    lines += [f"{host}: removes the image {image}, if no container uses it" for image in images]
    if not lines:
        lines = [f"{host}: there is nothing to remove"]
    lines += _kept(results, host)
    lines += [f"{host}: keeps the dataset cache {path}" for path in caches]
    kept = "Docker and its volumes" if images else "Docker, its volumes and the images"
    # A folder that lies in another's is looked at twice.
    return list(dict.fromkeys([*lines, f"{host}: keeps {kept}"]))


def _kept(results: Sequence[Mapping[str, Any]], host: str) -> list[str]:
    return [f"{host}: keeps {line['path']}: {line['why']}" for result in results for line in result.get("keeps", [])]


def trainyard_stayed(registered: Sequence[Mapping[str, Any]], host: str) -> list[str]:
    """Return what site_folder (state absent) left on a host, a line each."""
    return list(dict.fromkeys(_kept(list(_results(registered)), host)))


class FilterModule:
    """Tells Ansible the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {"trainyard_removal": trainyard_removal, "trainyard_stayed": trainyard_stayed}
