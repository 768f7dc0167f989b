"""What work that counts what it has done is given, to say how far it is; `task_progress` shows it."""

from __future__ import annotations

from collections.abc import Callable

OnTask = Callable[[str, int, int], None]  # name of the task, how much is done, and of how much
