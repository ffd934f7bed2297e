"""Frozen feature networks for metrics, and where their published weights are."""
