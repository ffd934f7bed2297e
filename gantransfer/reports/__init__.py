"""What a person looks at: grids, curves, one page per run."""
