"""The pocket model: a tiny base model and the pictures of one creature, so that the whole program runs anywhere."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
DEMO_FOLDER = Path(__file__).parent / "demo"
HELD_OUT_FOLDER = Path(__file__).parent / "heldout"
KNOWN_FOLDER = Path(__file__).parent / "known"
"""Pictures of what the base model draws already: regularisation, so that learning the creature costs it nothing."""
