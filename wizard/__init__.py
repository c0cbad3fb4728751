"""The terminal: asks, explains, shows and launches."""

import os

# pydantic looks through all installed packages for plugins, 18 ms of every start; none is wanted.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
