"""Tell of every installed distribution its version, its folder and the modules it brings, as JSON; or import them.

python3 packages.py                # {"numpy": ["2.4.6", "/usr/local/lib/...", ["numpy"]], ...}
python3 packages.py numpy pillow   # imports numpy and PIL; prints what fails, one line each
"""

import importlib
import importlib.metadata
import json
import sys


def modules(found):
    """Return the names of a distribution's modules: what it says itself, or else what its files are."""
    said = (found.read_text("top_level.txt") or "").split()
    names = set()
    for file in found.files or []:
        first = file.parts[0]
        if len(file.parts) > 1 and file.suffix in (".py", ".so") and first.isidentifier():
            names.add(first)
        elif len(file.parts) == 1 and file.suffix in (".py", ".so"):
            names.add(first.split(".")[0])
    return sorted(name for name in said or names if name != "__pycache__")


def installed():
    """Return all distributions that an import finds; of two with one name the first counts, as for imports."""
    found = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        found.setdefault(name, [one.version, str(one.locate_file("")), modules(one)])
    return found


def main():
    """Run the command."""
    found = installed()
    if len(sys.argv) == 1:
        print(json.dumps(found))
        return
    for name in sys.argv[1:]:
        if name not in found:
            print(name, "is not installed")
            continue
        if not found[name][2]:
            print(name, "has no modules")
        for module in found[name][2]:
            try:
                importlib.import_module(module)
            except Exception as error:
                print(f"{name}: import {module}: {error!r}")


if __name__ == "__main__":
    main()
