"""Completion, as a shell asks for it."""

import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
NOWHERE = """
[source]
dsn = "postgresql://nobody@127.0.0.1:1/none"
[read]
url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
[[projection.mirrors]]
source = "public.orders"
[[projection.mirrors]]
source = "shop.*"
"""


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    return {**kept, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}


def script(shell: str) -> str:
    printed = subprocess.run(
        ["cdc"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(_CDC_COMPLETE=f"source_{shell}"),
    )
    return printed.stdout


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete --command cdc")],
)
def test_a_script_is_made_for_each_shell(shell: str, words: str) -> None:
    assert words in script(shell)


def completed(words: list[str], **variables: str) -> list[str]:
    """Give what bash is offered for the last word."""
    asked = subprocess.run(
        ["cdc"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(
            _CDC_COMPLETE="complete_bash",
            COMP_WORDS=" ".join(words),
            COMP_CWORD=str(len(words) - 1),
            **variables,
        ),
    )
    assert asked.stderr == ""
    return asked.stdout.split()


def test_projectors_of_the_configuration_are_offered_without_a_database(tmp_path: Path) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text(NOWHERE)
    asked = ["cdc", "verify", "--projector", "mi"]
    assert completed(asked, CDC_CONFIG=str(file)) == ["mirror:public.orders"]
    assert completed(["cdc", "verify", "--config", str(file), *asked[2:]]) == [
        "mirror:public.orders"
    ]
    assert completed(asked, CDC_CONFIG=str(tmp_path / "none")) == []


def test_bash_completes_a_word_that_is_typed(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script("bash"))
    terminal, inside = pty.openpty()
    ends = {"stdin": inside, "stdout": inside, "stderr": inside}
    command = ["bash", "--norc", "--noprofile", "-i"]
    with subprocess.Popen(
        command, **ends, start_new_session=True, env=environment(TERM="dumb", PS1="> ")
    ) as bash:
        os.write(terminal, f"source {tmp_path}/completion && echo loa''ded\n".encode())
        read_until(terminal, b"loaded")
        os.write(terminal, b"cdc qu\t")
        read_until(terminal, b"cdc quarantine ")
        bash.kill()
    os.close(terminal)
    os.close(inside)


def read_until(terminal: int, wanted: bytes) -> None:
    seen, deadline = b"", time.monotonic() + 60
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, seen
        with suppress(OSError):
            seen += os.read(terminal, 4096)
