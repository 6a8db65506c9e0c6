"""What a person sees while training: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Hears how a run goes."""

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Shows nothing."""

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""

    def close(self) -> None:
        """Nothing is open."""


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 8 s, 2 min 05 s, 3 h 20 min."""
    s = round(max(0.0, seconds))
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def summary(metrics: dict[str, Any]) -> str:
    """Loss by term, rate, waiting and the last evaluation in one line."""
    terms = metrics.get("terms", {})
    parts = [f"loss {v:.4g} ({k})" if len(terms) == 1 else f"{k} {v:.4g}" for k, v in terms.items()]
    if len(terms) > 1:
        parts[0] = f"loss {parts[0]}"
    if "images_per_second" in metrics:
        parts.append(f"{metrics['images_per_second']:.0f} images/s")
    if metrics.get("waiting", 0) >= 0.005:
        parts.append(f"{metrics['waiting']:.0%} waiting for data")
    if "knn" in metrics:
        parts.append(f"k-NN {metrics['knn']:.3f}")
    return ", ".join(parts)


class Lines:
    """A plain line now and then, for logs and pipes."""

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.total, self.first, self.stream, self.every = total, done, stream or sys.stderr, every
        self.started = time.monotonic()
        self.spoke, self.said = -1e9, -1
        self.known: dict[str, Any] = {}

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None:
        """Print a line if the last one is long enough ago, or the run is over."""
        self.known |= metrics or {}
        now = time.monotonic()
        due = now - self.spoke >= self.every or step == self.total
        if self.known and due and step != self.said:
            self.spoke, self.said = now, step
            done = step - self.first
            left = duration((now - self.started) / done * (self.total - step)) if done else "?"
            self.say(f"step {step}/{self.total}, {summary(self.known)}, {left} left")

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class Live:
    """A progress bar that stays in place."""

    def __init__(self, total: int, done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = [TextColumn("training"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}")]
        self.bar = Bar(*columns, console=Console(stderr=True), refresh_per_second=4)
        self.task = self.bar.add_task("training", total=total, completed=done, text="")
        self.known: dict[str, Any] = {}
        self.bar.start()

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None:
        """Move the bar."""
        self.known |= metrics or {}
        self.bar.update(self.task, completed=step, text=summary(self.known))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()


def display(total: int, done: int = 0) -> Progress:
    """The live bar on a terminal, plain lines elsewhere."""
    return Live(total, done) if sys.stderr.isatty() else Lines(total, done)


class counted:  # noqa: N801
    """A progress bar on a terminal, nothing elsewhere: ``with counted("reading", True) as progress: progress(done, total)``."""

    def __init__(self, what: str, wanted: bool) -> None:
        self.what, self.wanted = what, wanted and sys.stderr.isatty()
        self.bar: Any = None

    def __enter__(self) -> Callable[[int, int], None] | None:
        return self._update if self.wanted else None

    def _update(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        if self.bar is None:
            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(self.what, total=total)
            self.bar.start()
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
