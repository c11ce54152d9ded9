"""``python -m clearml_client`` is the program ``clearml-client``."""

from .cli import main

main()
