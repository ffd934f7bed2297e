"""Measures of generated images, one file each, and the protocols they are reported under."""
