"""The write database: the only code that speaks to it."""
