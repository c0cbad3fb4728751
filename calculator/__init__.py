"""What a run will do, before it runs: arithmetic over a TrainingConfig and facts, standard library only."""
