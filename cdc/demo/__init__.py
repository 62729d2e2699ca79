"""Stub until the demo lands."""


def run(*, seconds, postgres, console):
    raise NotImplementedError
