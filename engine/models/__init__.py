"""The families of base models: what a file is (detect), how it is loaded (load), what the loop asks of every family
(family), and how each one works (sd, sdxl).

What a new family takes, and nothing else:

- `knowledge/data/architectures/FAMILY/`: family.toml, whose keys `knowledge.families.FamilyFacts` explains (what its
  diffusers folders and single files are told by, how files name its layers, what it lacks, its words in metadata), and
  the usual configs of its parts in diffusers' layout. Where its layers are none that `knowledge.architectures` works
  out of a config, family.toml lists them, and the calculator knows what networks on it hold.
- A module here with a class on `family.BaseModel`, or on `clip.ClipModel` where CLIP reads its captions: its parts and
  how they become a model, text encoding, noise, prediction, target, loss, sampling. A row for it in `load.FAMILIES`.
- `knowledge/data/memory/FAMILY.json`, which `python -m engine.tools.trace_memory FAMILY` writes: what a step allocates
  and computes, for the plan's memory and time.
- What we believe of it: a choice in `knowledge/data/parameters/base_model.toml`, its recommendations and rules; in
  `knowledge/formats` the words of those other trainers that know it.

tests/engine/test_family.py adds one that way: small_flow, a flow-matching transformer.
"""
