"""python -m benchmarks.publish [FILE...]: take results into docs/, draw the plots, fill the tables.

Without files it makes plots and tables from what is in docs/measured.json.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import page, plots
from benchmarks.published import DOCS, Published


def publish(*documents: Mapping[str, Any]) -> None:
    """Let the documentation show these runs' figures."""
    published = Published.read()
    for document in documents:
        published.take(document)
    published.write()
    plots.draw(published, DOCS / "plots")
    page.PATH.write_text(page.rewritten(page.PATH.read_text(), published))


if __name__ == "__main__":
    publish(*(json.loads(Path(name).read_text()) for name in sys.argv[1:]))
