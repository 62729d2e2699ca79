"""Throwaway Postgres servers in a temporary folder: for `cdc demo`, tests and benchmarks."""

from cdc.servers.installation import Installation, ServerFailed, find, find_installed, find_wheel
from cdc.servers.server import Server

__all__ = ["Installation", "Server", "ServerFailed", "find", "find_installed", "find_wheel"]
