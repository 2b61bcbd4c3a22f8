"""Options and argument types that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ..arithmetic import ARITHMETICS, IEEE
from ..errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])


def _remember_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(dict)["debug"] = True


def common(command: Command) -> Command:
    """``--json FILE``, ``--device`` and ``--debug``, which every command has."""
    command = click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_remember_debug,
                           help="Show the traceback of an error.")(command)
    command = click.option("--device", default="auto", show_default=True,
                           type=click.Choice(["auto", "cpu", "cuda", "reference"]),
                           help="Where to compute; reference is slow and exact.")(command)
    return click.option("--json", "json_path", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
                        help="Also write the result as JSON (- for stdout).")(command)


def some_members(command: Command) -> Command:
    """``--members q,s``: which members to run; the value is a tuple of names, or None for all."""
    return click.option("--members", callback=_names, metavar="NAMES",
                        help="Run only these members, for example q or q,s; they vote.")(command)


def trace_file(command: Command) -> Command:
    """``--trace FILE``."""
    return click.option("--trace", "trace_path", type=click.Path(path_type=Path), metavar="FILE",
                        help="On a GPU, write a run of the first batch on a time line for Perfetto or chrome://tracing.")(command)


def float_arithmetic(command: Command) -> Command:
    """``--arithmetic tf32x3``: of float members on a GPU."""
    return click.option("--arithmetic", type=click.Choice(ARITHMETICS), default=IEEE, show_default=True,
                        help="How float members are multiplied on a GPU: float32, or tensor cores with split operands.")(command)


def largest_batch(command: Command) -> Command:
    """``--max-batch 8``: what a GPU computes at a time."""
    return click.option("--max-batch", type=int, metavar="N",
                        help="Most images at a time on a GPU, a power of two, for which memory and layouts are chosen. "
                             "Default: 4096.")(command)


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(","))


def keep_inputs(outputs: Sequence[Path | None], inputs: Sequence[Path]) -> None:
    """Raises InputError when a file to be written is one that is read, or two outputs are the same file."""
    taken = {os.path.realpath(path): "an input of this command" for path in inputs}
    for path in outputs:
        if path is None or str(path) == "-":
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise InputError(f"writing {path}", expected="a file of its own", got=taken[place], fix="choose another name")
        taken[place] = "another output of this command"


def find_own_models() -> None:
    """Lets ``--arch package.module:factory`` name a module in the working folder, after everything that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def training_device(device: str) -> str:
    """``device`` if one can train on it; raises InputError for ``reference``."""
    if device == "reference":
        raise InputError("--device", expected="auto, cpu or cuda for training", got=device, fix="choose one of these")
    return device


def numbers(value: str | None, option: str) -> tuple[float, ...] | None:
    """``"0.485,0.456,0.406"`` -> (0.485, 0.456, 0.406); None stays None."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise InputError(option, expected="numbers separated by commas, one per channel", got=repr(value),
                         fix=f"write for example {option} 0.485,0.456,0.406") from None


def positive_integers(value: str, option: str, most: int) -> tuple[int, ...]:
    """``"1,128"`` -> (1, 128), each once; raises InputError for anything but whole numbers from 1 to ``most``."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        found = ()
    if not found or not all(1 <= n <= most for n in found):
        raise InputError(option, expected=f"whole numbers from 1 to {most}, separated by commas", got=repr(value),
                         fix=f"write for example {option} 1,2")
    return found
