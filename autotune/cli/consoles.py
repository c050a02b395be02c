"""The two terminals: results go to ``out``, everything said about the work to ``err``."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from autotune.machine.environment import outside
from autotune.util.escape import for_terminal
from autotune.util.secret import mask

PIPED_WIDTH = 160
"""A file or a pipe has no width of its own; tables must not be cut to 80 columns there."""


class SafeConsole(Console):
    """A terminal that shows words of servers and files, and neither obeys them nor tells secrets.

    What is rendered is text and styles apart: escape sequences of ours come from styles alone.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich renders, each text without control characters and secrets."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(for_terminal(mask(segment.text)), segment.style)

    def warn(self, text: str) -> None:
        """Print what must not be overlooked, in one line; ``text`` is no markup."""
        self.print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True)

    def say(self, text: str, hang: int = 0) -> None:
        """Print lines in rich's markup: a terminal breaks them between words.

        Args:
            text: each of its lines stays whole where this is no terminal.
            hang: columns by which what follows a break is indented.
        """
        if not self.is_terminal:
            self.print(text, soft_wrap=True)
            return
        for line in Text.from_markup(text, emoji=False).split("\n"):
            head, body = line[:hang], line[hang:]
            for part in body.wrap(self, max(20, self.width - hang)):
                self.print(head + part, soft_wrap=True)
                head = Text(" " * hang)


_outside = outside()
"""In a container both are pipes to the command that started it, which has the terminals."""
_out_width = _outside.out_width if _outside is not None else None
_err_width = _outside.err_width if _outside is not None else None
out = SafeConsole(
    highlight=False,
    emoji=False,
    force_terminal=True if _out_width else None,
    width=_out_width or (None if sys.stdout.isatty() else PIPED_WIDTH),
)
err = SafeConsole(
    stderr=True,
    highlight=False,
    emoji=False,
    force_terminal=True if _err_width else None,
    width=_err_width,
)
