"""Pictures of many requests on one engine, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from nextstep.engine.engine import Engine
from nextstep.engine.events import Event
from nextstep.engine.request import Request
from nextstep.engine.results import OnPicture, Progress
from nextstep.flow.noise import NoiseSource, OnePicture


def run_part(
    engine: Engine,
    requests: Sequence[Request],
    before: int,
    keep: OnPicture,
    on_progress: Callable[[Progress], None] | None = None,
    noise: NoiseSource | None = None,
) -> None:
    """Make some of a run's pictures.

    Args:
        engine: that makes them.
        requests: that are queued together.
        before: pictures of the run that were made before these.
        keep: told the place in the run and a picture, in the order in which they are done.
        on_progress: told after every image token.
        noise: recorded draws of the whole run in place of the seeds'.

    Raises:
        NextStepError: when one fails; the others are given up then.
    """
    tickets = {
        engine.submit(one, noise=noise and OnePicture(noise, place)): (place, one)
        for place, one in enumerate(requests, before)
    }
    live, finished = dict[int, Tensor](), before

    def told(events: Sequence[Event]) -> None:
        nonlocal finished
        grown = [event for event in events if event.kind in ("token", "row")]
        live.update({event.ticket: event.tokens for event in grown if len(event.tokens)})
        if live and grown and on_progress is not None:
            ticket, tokens = min(live.items(), key=lambda one: len(one[1]))
            total = tickets[ticket][1].decode.tokens
            shown = [(known, tickets[t][1].grid) for t, known in live.items()]
            preview = lambda: [engine.preview(*one) for one in shown]  # noqa: E731
            on_progress(Progress(len(tokens), total, len(live), finished, preview))
        for event in events:
            if event.kind == "finished":
                finished += 1
                live.pop(event.ticket, None)
                place, asked = tickets[event.ticket]
                keep(place, engine.picture(event.request or asked, event.tokens))

    engine.wait(list(tickets), told)
