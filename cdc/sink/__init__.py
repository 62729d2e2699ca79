"""The read database: the only code that writes to it."""
