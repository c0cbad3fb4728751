"""What LoRA training is made of: the schema, the explanations, the rules and the presets. Imports nothing of ours."""
