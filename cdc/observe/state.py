"""What the daemon is doing, in one word."""

from enum import StrEnum


class State(StrEnum):
    """The states of the daemon, each a value of the label of `cdc_state`."""

    STARTING = "starting"
    STREAMING = "streaming"
    STUCK = "stuck"
    STANDBY = "standby"
    RETRYING = "retrying"
    STOPPING = "stopping"
