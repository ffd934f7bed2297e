"""Which source to start from, and which feature network to judge with."""
