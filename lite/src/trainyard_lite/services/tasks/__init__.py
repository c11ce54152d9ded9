"""``tasks.*``: experiments. Importing the package registers its endpoints, a module for each subject."""

from . import clone, edit, life, many, outputs, parameters, read

__all__ = ["clone", "edit", "life", "many", "outputs", "parameters", "read"]
