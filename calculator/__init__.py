"""What a run will do, before it runs: pure arithmetic over a TrainingConfig and facts, with the standard library alone."""
