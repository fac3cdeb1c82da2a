"""Render src/nextstep/world/atlas from the pinned emoji packages; takes minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from nextstep.world.drawings import ATLAS_FOLDER, build_atlas


def main() -> None:
    """Write the sheets and their index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ATLAS_FOLDER)
    build_atlas(parser.parse_args().output)


if __name__ == "__main__":
    main()
