"""A line that shows how far something is."""

import sys
import time

from torchgeo_explora.cli.console import say

SECONDS_BETWEEN_LINES = 10.0


class Meter:
    """A progress line: rewritten in place on a terminal, a new one every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.last = float('-inf')

    def show(self, text: str, last: bool = False) -> None:
        """Show a state if it is time to.

        Args:
            text: The line.
            last: Whether it is the final one, which is always shown.
        """
        now = time.monotonic()
        if not last and now - self.last < (0.5 if self.live else SECONDS_BETWEEN_LINES):
            return
        self.last = now
        if self.live:
            print(f'\r\x1b[2K{text}', end='\n' if last else '', flush=True)
        else:
            say(text)
