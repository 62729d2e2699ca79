"""Read models and their projectors. They import `cdc`, the public door, and SQLAlchemy alone."""
