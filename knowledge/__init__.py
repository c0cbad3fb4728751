"""What LoRA training is made of: the schema, the explanations, the rules and the presets. Imports nothing of ours."""

import os

# pydantic looks through all installed packages for plugins of its own, a tenth of the time calc takes; we use none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
