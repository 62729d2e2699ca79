"""What makes a contestant's figure void."""


class BenchError(Exception):
    """The benchmark, or one contestant of it, could not be run to its end."""


class Unequal(BenchError):
    """A contestant's result differs from the source."""
