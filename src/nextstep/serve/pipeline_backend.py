"""The pipeline as a backend: one worker thread, requests of one kind made together."""

from __future__ import annotations

import io
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nextstep.errors import NextStepError
from nextstep.image import pictures
from nextstep.image.sizes import fitting_size
from nextstep.results import GeneratedPicture
from nextstep.serve import backend as b

if TYPE_CHECKING:
    from PIL import Image

    from nextstep.pipeline import NextStepPipeline
    from nextstep.results import Progress

log = logging.getLogger("nextstep.serve")

INTERNAL = "the picture could not be made because of an internal failure; the log says more"


class _Stop(Exception):  # noqa: N818  control flow: nobody waits for this batch any more
    """Raised inside the pipeline to leave it between two tokens."""


class _Task:
    """A submitted job: who may still tell its end."""

    def __init__(self, job: b.Job, forget: Callable[[_Task], bool]) -> None:
        self.job = job
        self.request = job.request
        self.over = False
        self.cancelled = False
        self._forget = forget
        self._lock = threading.Lock()

    def tell(self, event: b.Event) -> None:
        """Pass an event on, but nothing after a final one."""
        with self._lock:
            if self.over:
                return
            self.over = isinstance(event, b.FINAL)
        self.job.tell(event)

    def cancel(self) -> None:
        """Stop: at once while waiting, else at the next token."""
        self.cancelled = True
        if self._forget(self):
            self.tell(b.Cancelled())

    def fork(self, row: int, job: b.Job) -> b.Handle:
        """Not here: the pipeline keeps no rows of a picture."""
        raise NextStepError("this service cannot go on from a row; ask for a new picture instead")


class PipelineBackend:
    """Runs jobs on a `NextStepPipeline`.

    Generations of one size and one set of settings that wait together are made together; every
    picture is what it would be alone, because its noise is keyed by its own seed.

    Args:
        pipeline: loaded.
        name: of the model as clients say it.
        max_batch: pictures made together.
        on_batch: told the size of every batch.
    """

    def __init__(
        self,
        pipeline: NextStepPipeline,
        name: str = "nano",
        max_batch: int = 8,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.pipeline, self.max_batch, self.on_batch = pipeline, max_batch, on_batch
        own = pipeline.defaults
        self.facts = b.ModelFacts(
            name,
            pipeline.model_hash,
            own.height,
            own.width,
            pipeline.image_tokenizer.config.token_pixels,
        )
        self._waiting: deque[_Task] = deque()
        self._change = threading.Condition()
        self._closing = self._interrupted = False
        self._worker = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._worker.start()

    def check(self, request: b.JobRequest) -> None:
        """See `Backend.check`."""
        own = self.pipeline.defaults
        (own.edit if request.sources else own.generate).with_values(**request.settings)
        self.pipeline.grid(request.height, request.width, (own.height, own.width))

    def submit(self, job: b.Job) -> _Task:
        """See `Backend.submit`."""
        task = _Task(job, self._forget)
        with self._change:
            if self._closing:
                raise NextStepError("the service is stopping; ask again later")
            self._waiting.append(task)
            self._change.notify()
        return task

    def close(self, grace: float) -> None:
        """See `Backend.close`."""
        with self._change:
            self._closing = True
            self._waiting.clear()
            self._change.notify()
        self._worker.join(grace)
        self._interrupted = True
        self._worker.join()

    def _forget(self, task: _Task) -> bool:
        with self._change:
            if task not in self._waiting:
                return False
            self._waiting.remove(task)
            return True

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._serve(batch)
            except _Stop:
                continue
            except Exception:
                log.exception("a batch failed")
                for task in batch:
                    task.tell(b.Failed(INTERNAL))

    def _next(self) -> list[_Task]:
        """The job that has waited longest, and those behind it that can join; none when closing."""
        with self._change:
            self._change.wait_for(lambda: self._closing or self._waiting)
            if self._closing:
                return []
            batch = [self._waiting.popleft()]
            room = self.max_batch - batch[0].request.n
            if batch[0].request.task == b.GENERATE:
                for task in list(self._waiting):
                    if _alike(task.request, batch[0].request) and task.request.n <= room:
                        self._waiting.remove(task)
                        batch.append(task)
                        room -= task.request.n
            return batch

    def _serve(self, batch: list[_Task]) -> None:
        count = sum(task.request.n for task in batch)
        for task in batch:
            task.tell(b.Started(count))
        if self.on_batch is not None:
            self.on_batch(count)
        try:
            if batch[0].request.task == b.CHAT:
                self._chat(batch[0])
            else:
                self._pictures(batch)
        except (ValueError, FileNotFoundError) as error:
            if len(batch) == 1:
                batch[0].tell(b.Failed(str(error), bad_input=True))
                return
            # One request's fault must not become its neighbours'.
            for task in batch:
                self._serve([task])

    def _pictures(self, batch: list[_Task]) -> None:
        first = batch[0].request
        sources = [self._source(batch[0], name) for name in first.sources]
        height, width = self._size(first, sources)
        given: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_images": first.n,
            "seed": [task.request.seed for task in batch],
            "batch_size": self.max_batch,
            "on_progress": self._told(batch, width),
            **first.settings,
        }
        prompts = [task.request.prompt for task in batch]
        if sources:
            made = self.pipeline.edit(sources, prompts, **given)
        else:
            made = self.pipeline.generate(prompts, **given)
        for place, task in enumerate(batch):
            own = made[place * first.n : (place + 1) * first.n]
            usage = self._usage(task.request, sources, own)
            task.tell(b.Done(tuple(b.Part("", p.png(), p.settings) for p in own), usage))

    def _chat(self, task: _Task) -> None:
        request = task.request
        sources = [self._source(task, name) for name in request.sources]
        parts = [p if isinstance(p, str) else sources[p] for p in request.parts]
        told = self.pipeline.conversation(request.seed, **request.settings)
        told.read(*parts)
        made: list[b.Part] = []
        if not request.draws:
            text = told.write(request.max_tokens, request.temperature, request.top_p).strip()
            made.append(b.Part(text))
            task.tell(b.PartDone(0, made[-1]))
        else:
            progress = self._told([task], None)
            for part in told.go_on(
                request.draws, request.max_tokens, request.temperature, request.top_p, progress
            ):
                if isinstance(part, GeneratedPicture):
                    made.append(b.Part("", part.png(), part.settings))
                else:
                    made.append(b.Part(part))
                self._leave_if_over([task])
                task.tell(b.PartDone(len(made) - 1, made[-1]))
        words = sum(len(self._ids(part.text)) for part in made)
        drawn = sum(self._tokens(part.settings) for part in made if part.png)
        text_in = sum(len(self._ids(part)) for part in request.parts if isinstance(part, str))
        usage = b.Usage(text_in, self._source_tokens(sources), words, drawn)
        task.tell(b.Done(tuple(made), usage))

    def _told(self, batch: list[_Task], width: int | None) -> Callable[[Progress], None]:
        """Turn the pipeline's progress into events, and leave it when nobody waits any more."""
        flat = [(task, index) for task in batch for index in range(task.request.n)]
        side = self.facts.token_pixels

        def told(progress: Progress) -> None:
            self._leave_if_over(batch)
            now = flat[progress.pictures : progress.pictures + progress.batch]
            previews: list[Image.Image] = []
            columns = (width or self.facts.width) // side
            if width is None:
                # A chat's picture takes its size from the one before it: look once a token row
                # of a square would be there.
                columns = max(1, round(progress.total**0.5))
                now = [(batch[0], progress.pictures)]
            row, left = divmod(progress.tokens, columns)
            if left:
                return
            rows = -(-progress.total // columns)
            if any(task.job.wants_preview(row, rows) for task, _ in now):
                previews = progress.preview()
            for place, (task, index) in enumerate(now):
                wanted = previews and task.job.wants_preview(row, rows)
                task.tell(b.RowDone(index, row, rows, previews[place] if wanted else None))

        return told

    def _leave_if_over(self, batch: list[_Task]) -> None:
        if self._interrupted:
            raise _Stop
        for task in batch:
            if task.cancelled:
                task.tell(b.Cancelled())
        if all(task.over for task in batch):
            raise _Stop

    def _source(self, task: _Task, name: str) -> Image.Image:
        return pictures.open_picture(io.BytesIO(task.job.load(name)))

    def _size(self, request: b.JobRequest, sources: list[Image.Image]) -> tuple[int, int]:
        """Pixels of the result: as asked, else the first source's as the pipeline resizes it."""
        height, width = self._fitted(sources[0]) if sources else (self.facts.height,
                                                                  self.facts.width)  # fmt: skip
        return request.height or height, request.width or width

    def _fitted(self, picture: Image.Image) -> tuple[int, int]:
        tall, wide = picture.height, picture.width
        tall, wide = min(tall, 4 * wide), min(wide, 4 * tall)
        area = self.facts.height * self.facts.width
        return fitting_size(tall, wide, self.facts.token_pixels, area)

    def _source_tokens(self, sources: list[Image.Image]) -> int:
        sizes = [self._fitted(picture) for picture in sources]
        return sum(height * width for height, width in sizes) // self.facts.token_pixels**2

    def _tokens(self, settings: dict[str, Any]) -> int:
        return settings["height"] * settings["width"] // self.facts.token_pixels**2

    def _ids(self, text: str) -> list[int]:
        return self.pipeline.text_tokenizer.encode(text)

    def _usage(
        self, request: b.JobRequest, sources: list[Image.Image], made: list[GeneratedPicture]
    ) -> b.Usage:
        drawn = sum(self._tokens(picture.settings) for picture in made)
        return b.Usage(
            len(self._ids(request.prompt)), self._source_tokens(sources), 0, drawn
        )  # fmt: skip


def _alike(one: b.JobRequest, other: b.JobRequest) -> bool:
    """Whether two generations can be made in one call of the pipeline."""
    return (one.task, one.height, one.width, one.n, one.settings) == (
        other.task, other.height, other.width, other.n, other.settings,
    )  # fmt: skip
