"""Networks that somebody trained: reading them, fitting them to new classes, writing them out."""
