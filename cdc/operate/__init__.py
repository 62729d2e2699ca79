"""What acts on a system from the outside: start-up, checks, setup, drop, status."""
