"""The command line. One module per command; this one holds the group and what an error looks like to a user.

Commands import what they need when they run, so that ``hce --help`` does not wait for torch.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from .. import __version__
from ..errors import HceError

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
TERMINATED = 143  # the same for a program that was asked to end
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
COMMANDS = ("doctor", "quickstart", "train", "matrix", "report", "build", "info", "run", "eval", "bench", "audit")


class _Commands(click.Group):
    """Finds a command in the module of its name (``eval_`` for eval, ``run_`` for run) when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{name}_command", __name__).command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hce")
def app() -> None:
    """HCE Engine: one pretrained CNN in; one small, fast ensemble out.

    \b
    hce quickstart                      from nothing to a measured ensemble, in minutes
    hce build CHECKPOINT --arch resnet20 -o model.hce
    hce run model.hce photos/ -o predictions.csv

    Exit codes: 0 ok, 1 a check failed, 2 usage, 3 unsupported here, 4 invalid artifact.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and ends the process with its exit code; an error is one sentence on stderr."""
    state = {"debug": False}
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    if sys.stdout is None:  # started with a closed stdout
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        code = app.main(arguments, prog_name="hce", standalone_mode=False, obj=state)
        sys.stdout.flush()  # here, where a full disk behind it is reported
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("hce: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_stdout()  # the reader of our output went away, which is its right
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            _drop_stdout()
        if state["debug"]:
            traceback.print_exc()
        print(f"hce: {_sentence(error)}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, HceError) else 1)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(*_: object) -> NoReturn:
    """As an exception, a request to end removes temporary files on its way out."""
    sys.exit(TERMINATED)


def _drop_stdout() -> None:
    """What stdout still holds goes nowhere, so that the interpreter does not fail on it once more when it ends."""
    with suppress(OSError, ValueError):  # stdout has no file, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    if isinstance(error, HceError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return f"writing the output: expected free space, got {error.strerror}; free some space or send it elsewhere"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises a RuntimeError
        return "out of memory; use a smaller --batch or a machine with more memory"
    reason = " ".join(str(error).split())[:300]
    return f"unexpected {type(error).__name__}: {reason}; run again with --debug and report what it prints"
