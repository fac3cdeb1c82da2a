"""Worker processes of the loader: documents and batches are made beside the training process.

Threads of one process take turns at running Python, so they cannot feed a fast device. Processes
can: they draw the documents of every source ahead of the plan, which needs lengths alone, and put
whole micro-batches together. Sources and draws are pure functions of index and seed, so batches and
their order are the same to the last bit, whoever makes them.

Tensors of a micro-batch lie in a file, in memory where the machine has room for it, which the
training process maps: through a pipe they would cost it more time than a step of a small model.

Legend: tensors of any shape pass as the bytes that they hold.
"""

from __future__ import annotations

import io
import itertools
import math
import mmap
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep.data.documents import Document, DocumentHandle, SampleError, Source
from nextstep.data.mixing import Mixture, SampleUse
from nextstep.errors import NextStepError

CHUNK = 16
"""Documents that a worker draws at once; less would be spent on passing them on."""
CHUNKS_PER_WORKER = 4
"""Chunks that are drawn ahead of the plan, for each worker."""
MEMORY = Path("/dev/shm")
"""A folder that lies in memory."""
ALIGNED = 64
"""Bytes of which the place of a tensor in a file is a multiple."""
ROOM = 2**31
"""Free bytes there from which on it is used; a container may have little."""


@dataclass(frozen=True)
class Sent:
    """A value whose tensors lie in a file.

    Attributes:
        value: pickled without them.
        file: that holds them, one behind the other, each at a multiple of `ALIGNED`.
        sizes: their bytes.
    """

    value: bytes
    file: Path
    sizes: list[int]


BatchOf = Callable[[list[Any]], Any]
Found = DocumentHandle | SampleError | None


@dataclass(frozen=True)
class MadeBatch:
    """A micro-batch of a worker.

    Attributes:
        batch: what `batch_of` made.
        broken: the documents whose pictures could not be had: (row, place in it, error).
    """

    batch: Any
    broken: list[tuple[int, int, SampleError]]


class WorkerProcesses:
    """Processes that draw documents and make micro-batches.

    Args:
        sources: each must be picklable, and so must its pictures.
        batch_of: makes a micro-batch of rows; picklable too.
        mixture: says which sample a source's position is.
        count: processes.

    Raises:
        NextStepError: when sources or `batch_of` cannot be sent to another process.
    """

    def __init__(
        self, sources: Seq[Source], batch_of: BatchOf, mixture: Mixture, count: int
    ) -> None:
        try:
            sent = pickle.dumps((list(sources), batch_of))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise NextStepError(
                f"these sources cannot be sent to worker processes ({error}); set processes to 0"
            ) from None
        self._folder = tempfile.TemporaryDirectory(prefix="nextstep-batches-", dir=_in_memory())
        self._pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), _begin, (sent, self._folder.name)
        )
        total = sum(mixture.shares)
        self._ahead = [
            _DocumentsAhead(
                self._pool, mixture, place, 1 + math.ceil(CHUNKS_PER_WORKER * count * share / total)
            )
            for place, share in enumerate(mixture.shares)
        ]

    def document(self, draw: SampleUse) -> DocumentHandle | None:
        """The document of a draw; draws of one source are quick in the order of their positions.

        Raises:
            SampleError: when it is broken.
            NextStepError: when a worker has ended.
        """
        with _workers_alive():
            found = self._ahead[draw.source].take(draw.position)
        if isinstance(found, SampleError):
            raise found
        return found

    def micro_batch(self, rows: list[list[tuple[int, DocumentHandle]]]) -> Future[Sent]:
        """Begin a micro-batch of rows of (source, document)."""
        sent = [[(source, document.data) for source, document in row] for row in rows]
        with _workers_alive():
            return self._pool.submit(_micro_batch, sent)

    @staticmethod
    def made(batch: Future[Sent]) -> MadeBatch:
        """A micro-batch, as soon as it is ready.

        Raises:
            NextStepError: when a worker has ended.
        """
        with _workers_alive():
            made: MadeBatch = unpacked(batch.result())
        return made

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()


def _in_memory() -> Path | None:
    """A folder in memory with room in it, if there is one."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None


@contextmanager
def _workers_alive() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise NextStepError(
            "a worker process of the loader has ended, perhaps for lack of memory; use fewer "
            "processes"
        ) from None


class _DocumentsAhead:
    """The documents of one source, drawn ahead of where they are asked for.

    Args:
        pool: whose processes draw.
        mixture, source: which sample a position is.
        chunks: that are under way.
    """

    def __init__(
        self, pool: ProcessPoolExecutor, mixture: Mixture, source: int, chunks: int
    ) -> None:
        self.pool, self.mixture, self.source, self.chunks = pool, mixture, source, chunks
        self.position = self.end = -1
        self.found: deque[Found] = deque()
        self.coming: deque[Future[list[Found]]] = deque()

    def take(self, position: int) -> Found:
        """The document of a position."""
        if position != self.position:
            # A run that is taken up asks for single documents first: nothing is drawn ahead yet.
            while self.coming:
                self.coming.popleft().cancel()
            self.found.clear()
            self.position = self.end = position
            self._submit(1)
        elif len(self.coming) < self.chunks:
            self._fill()
        if not self.found:
            self.found.extend(self.coming.popleft().result())
        self.position += 1
        return self.found.popleft()

    def _fill(self) -> None:
        while len(self.coming) < self.chunks:
            self._submit(CHUNK)

    def _submit(self, count: int) -> None:
        uses = [self.mixture.at(self.source, self.end + place) for place in range(count)]
        self.end += count
        wanted = [(use.index, use.seed) for use in uses]
        self.coming.append(self.pool.submit(_documents, self.source, wanted))


# What follows runs in the workers.

_worker: dict[str, Any] = {}


def _begin(sent: bytes, folder: str) -> None:
    """Take sources over, compute in one thread, and end with the process that asks."""
    # Whoever interrupts a run from a terminal stops the training, which then ends its workers.
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    _worker["files"] = (Path(folder) / f"{os.getpid()}-{n}" for n in itertools.count())
    _worker["sources"], _worker["batch_of"] = pickle.loads(sent)


def _end_with_parent(folder: str) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _documents(source: int, wanted: list[tuple[int, int]]) -> list[Found]:
    found: list[Found] = []
    for index, seed in wanted:
        try:
            document = _worker["sources"][source].document(index, seed)
        except SampleError as error:
            found.append(error)
            continue
        packed = document and DocumentHandle(document.key, len(document), pickle.dumps(document, 5))
        found.append(packed)
    return found


def _micro_batch(rows: list[list[tuple[int, bytes]]]) -> Sent:
    made: list[list[tuple[Document, Seq[Any]]]] = []
    broken = []
    for number, row in enumerate(rows):
        made.append([])
        for place, (source, data) in enumerate(row):
            document: Document = pickle.loads(data)
            try:
                images = _worker["sources"][source].pictures(document) if document.images else []
                made[-1].append((document, images))
            except SampleError as error:
                broken.append((number, place, error))
    return packed(MadeBatch(_worker["batch_of"](made), broken), next(_worker["files"]))


def packed(value: Any, file: Path) -> Sent:
    """Any value, its tensors and arrays in a file."""
    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    _TensorPickler(out, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [buffer.raw() for buffer in buffers]
    with file.open("wb") as into:
        for view in views:
            into.write(view)
            into.write(bytes(-view.nbytes % ALIGNED))
    return Sent(out.getvalue(), file, [view.nbytes for view in views])


def unpacked(sent: Sent) -> Any:
    """What was packed; the file is gone then, and its memory with the last tensor in it."""
    with sent.file.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if sum(sent.sizes) else b""
    sent.file.unlink()
    view, room = memoryview(whole), (size + -size % ALIGNED for size in sent.sizes)
    firsts = itertools.accumulate(room, initial=0)
    parts = [view[first : first + size] for first, size in zip(firsts, sent.sizes, strict=False)]
    return pickle.loads(sent.value, buffers=parts)


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as arrays of bytes, which need not be copied."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1)
        return _tensor, (flat.view(torch.uint8).numpy(), value.dtype, tuple(value.shape))


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)
