"""Signals that end a run end it after the step under way, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Turns the first SIGTERM, SIGUSR1 or SIGINT into a wish to stop after this step.

    Args:
        says: whether to say so on the terminal. Who asks twice does not wait: the second signal
            does what it did before.

    Attributes:
        asked: name of the signal that came, or "".
    """

    def __init__(self, says: bool = True) -> None:
        self.asked, self.says = "", says
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        signal.signal(number, self.before[signal.Signals(number)])
        if self.says:
            said = f"{self.asked}: stops after this step and saves; again stops at once"
            os.write(2, f"\nnextstep: {said}\n".encode())
