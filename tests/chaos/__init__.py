"""Kills at every step that moves a position, and an oracle that looks at the source alone."""
