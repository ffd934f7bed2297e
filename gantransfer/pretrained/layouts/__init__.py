"""The layouts of published checkpoints: one file per convention, all declared as data."""
