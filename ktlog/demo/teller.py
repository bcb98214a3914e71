"""How the demo speaks: step by step on a terminal, plain lines into a pipe, nothing under ``--json``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[], None]


class Teller:
    """Says nothing. What ``--json`` uses, and what the others extend."""

    def step(self, number: int, title: str) -> None:
        """A new chapter begins."""

    def say(self, text: str) -> None:
        """One thing happened."""

    def held(self, text: str) -> None:
        """A check held."""

    def refused(self, who: str, text: str) -> None:
        """Somebody refused a lie, as hoped."""

    def noticed(self, who: str, text: str) -> None:
        """Somebody noticed a lie that proves nothing by itself."""

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Work of *total* parts; call what is yielded after each."""
        yield lambda: None


class PlainTeller(Teller):
    """Lines of text, for pipes and files."""

    def step(self, number: int, title: str) -> None:
        print(f"\n{number}. {title}", flush=True)

    def say(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def held(self, text: str) -> None:
        print(f"   ok       {text}", flush=True)

    def refused(self, who: str, text: str) -> None:
        print(f"   refused  {who}: {text}", flush=True)

    def noticed(self, who: str, text: str) -> None:
        print(f"   noticed  {who}: {text}", flush=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1

        yield advance
        self.say(f"{title}: {done} of {total}")


class TerminalTeller(Teller):
    """Colour and progress bars, by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    def step(self, number: int, title: str) -> None:
        self._console.print(f"\n[bold]{number}. {title}[/bold]")

    def say(self, text: str) -> None:
        # Soft: the terminal wraps, so that a command stays one line for whoever copies it.
        self._console.print(f"   {text}", markup=False, soft_wrap=True)

    def held(self, text: str) -> None:
        self._console.print("   [green]✓ ok[/green]      ", end="")
        self._console.print(text, markup=False, soft_wrap=True)

    def refused(self, who: str, text: str) -> None:
        self._console.print("   [yellow]✗ refused[/yellow] ", end="")
        self._console.print(f"{who}: {text}", markup=False, soft_wrap=True)

    def noticed(self, who: str, text: str) -> None:
        self._console.print("   [yellow]! noticed[/yellow] ", end="")
        self._console.print(f"{who}: {text}", markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)


def choose_teller(as_json: bool) -> Teller:
    if as_json:
        return Teller()
    return TerminalTeller() if sys.stdout.isatty() else PlainTeller()
