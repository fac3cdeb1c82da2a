"""Save the picture after every row of image tokens, in reading order, as it is sampled."""

from nextstep import NextStepPipeline
from nextstep.engine.results import Progress

pipeline = NextStepPipeline.from_pretrained("nano")


def watch(progress: Progress) -> None:
    """Eight tokens are one row of a 128 px picture."""
    if progress.tokens % 8 == 0:
        progress.preview()[0].save(f"row-{progress.tokens // 8}.png")


pipeline.generate("castle, 3d style, pink background", seed=4, on_progress=watch)
