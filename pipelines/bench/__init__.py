"""The engine's goals, measured: ratios of runs side by side, the peers run for real (`truescale bench`)."""
