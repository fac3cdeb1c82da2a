"""The client that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from nextstep.client.protocol import (
    EventReader,
    JobState,
    RemotePicture,
    ServiceError,
    Source,
    StoryPart,
    Update,
    checked,
    checked_json,
    events_path,
    given,
    options,
    request_body,
    story_body,
    told_plainly,
    update_of,
)


class Client:
    """Talks to a service and waits for it.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        key: API key, where the service wants one.
        timeout: seconds without a word from the service after which it counts as gone.

    Raises:
        NextStepError: for an address that is none. All methods raise it for requests that the
            service calls faulty, `BusyError` when its queue is full, and `ServiceError` when it
            fails or cannot be reached.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        import httpx2

        self._http = httpx2.Client(**options(url, key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, prompt: str, *, images: Sequence[Source] = (), **fields: Any) -> JobState:
        """Ask for pictures without waiting.

        Args:
            prompt: of the picture, or what to change.
            images: sources; with them the job is an edit.
            **fields: n, size ("128x128"), seed, mask (a picture that is transparent where the
                first source may change), guidance, steps and the other settings.
        """
        return JobState.of(self._ask("POST", "/jobs", json=request_body(prompt, images, fields)))

    def stream(
        self,
        prompt: str,
        *,
        images: Sequence[Source] = (),
        previews: bool = True,
        **fields: Any,
    ) -> Iterator[Update]:
        """Ask for pictures and see them grow; leaving the loop early stops the job.

        Yields:
            What happens; the last update is done and holds the pictures.
        """
        job = self.submit(prompt, images=images, **fields)
        done = False
        if job.warnings:
            yield Update(job.id, "queued", warnings=job.warnings)
        try:
            for update in self.events(job.id, previews):
                done = update.state == "done"
                yield update
        finally:
            if not done:
                self.cancel(job.id)

    def generate(
        self, prompt: str, *, images: Sequence[Source] = (), **fields: Any
    ) -> list[RemotePicture]:
        """Pictures, all at once; `submit` names the arguments."""
        made: tuple[RemotePicture, ...] = ()
        for update in self.stream(prompt, images=images, previews=False, **fields):
            made = update.pictures
        return list(made)

    def story(
        self,
        parts: Sequence[StoryPart],
        on_update: Callable[[Update], None] = lambda update: None,
        **fields: Any,
    ) -> list[str | RemotePicture]:
        """Go on with text and pictures in order; all at once.

        Args:
            parts: texts, and pictures as bytes or paths.
            on_update: told of everything that happens on the way.
            **fields: max_images (0 is text alone), max_tokens, draw, temperature, seed, settings.

        Returns:
            What was written and drawn, in order.
        """
        body = story_body(parts, fields)
        job = JobState.of(self._ask("POST", "/jobs", json=body)).id
        for update in self.events(job, previews=False):
            on_update(update)
        made: list[str | RemotePicture] = []
        for part in (self.job(job)).parts:
            if part["type"] == "text":
                made.append(part["text"])
                continue
            with told_plainly():
                png = checked(self._http.get(part["url"])).content
            made.append(RemotePicture(png, part["settings"]))
        return made

    def events(self, job: str, previews: bool = True) -> Iterator[Update]:
        """What happens to a job, until it ends."""
        with told_plainly(), self._http.stream("GET", events_path(job, previews)) as answer:
            if answer.status_code != 200:
                answer.read()
                checked(answer)
            reader = EventReader()
            for line in answer.iter_lines():
                told = reader.line(line)
                if told is None:
                    continue
                update = update_of(job, *told)
                if update is None:
                    yield Update(job, "done", pictures=tuple(self.pictures(job)))
                    return
                yield update
        raise ServiceError("the service ended the events before the job")

    def pictures(self, job: str) -> list[RemotePicture]:
        """The pictures of a job that is done."""
        with told_plainly():
            return [
                RemotePicture(checked(self._http.get(url)).content, settings)
                for url, settings in self.job(job).links
            ]

    def job(self, job: str) -> JobState:
        """A job as it stands."""
        return JobState.of(self._ask("GET", f"/jobs/{job}"))

    def jobs(self, limit: int = 20) -> list[JobState]:
        """Your jobs, the newest first."""
        raw = self._ask("GET", "/jobs", params={"limit": limit})
        return [JobState.of(one) for one in raw["data"]]

    def cancel(self, job: str) -> JobState:
        """Stop a job at its next token."""
        return JobState.of(self._ask("POST", f"/jobs/{job}/cancel"))

    def stop(self, job: str) -> JobState:
        """End a job at its next token and keep the pictures and rows that are there."""
        return JobState.of(self._ask("POST", f"/jobs/{job}/stop"))

    def fork(self, job: str, row: int, *, picture: int = 0, **changes: Any) -> JobState:
        """A new job that keeps the first `row` rows of a picture and goes on in its own way.

        Args:
            job: running, done or stopped.
            row: rows of image tokens that are kept.
            picture: which of the job's.
            **changes: prompt, seed, guidance and the other settings; what is left out stays.
        """
        body = {"row": row, "picture": picture, **given(changes)}
        return JobState.of(self._ask("POST", f"/jobs/{job}/fork", json=body))

    def resample(self, job: str, *, picture: int = 0, **region: Any) -> JobState:
        """A new job that draws a region of a finished picture anew and keeps all else.

        Args:
            job: done or stopped.
            picture: which of the job's.
            **region: one of rows ([first, after the last]), tokens (numbers in raster order) and
                mask (a picture, transparent where it is drawn anew); prompt, seed and settings.
        """
        body = {"picture": picture, **given(region)}
        return JobState.of(self._ask("POST", f"/jobs/{job}/resample", json=body))

    def tokens(self, job: str, picture: int = 0, draws: int = 4) -> dict[str, Any]:
        """What each image token of a picture tells; see the service's reference."""
        path = f"/jobs/{job}/pictures/{picture}/tokens"
        return self._ask("GET", path, params={"draws": draws})

    def _ask(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        with told_plainly():
            return checked_json(self._http.request(method, path, **given))
