"""The step, its state, the loop around it and the checkpoints it leaves."""
