"""`cdc demo`: two throwaway databases, an application, the daemon, and a verdict.

The daemon here is the installed command, configured by a file as anybody's is; the application
knows nothing of it. What is shown is read from the daemon's HTTP port, as an operator would.
"""

from cdc.demo.play import Postgres, run

__all__ = ["Postgres", "run"]
