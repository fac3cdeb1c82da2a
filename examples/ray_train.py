"""Train a recipe on a Ray cluster.

    python examples/ray_train.py recipes/pretrain-nano.yaml runs/ray --processes 8

RAY_ADDRESS names the cluster; without it Ray starts on this machine. The run folder must lie where
all machines see it. The same command goes on from the newest checkpoint, with any number of
processes.
Needs pip install 'ray[train]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nextstep.recipe.load import load_recipe
from nextstep.recipe.run import run_recipe
from nextstep.train.launch import launch_on_ray


def work(recipe: str, changes: list[str], folder: str, device: str) -> None:
    """What every process does."""
    loaded = load_recipe(Path(recipe), changes)
    run_recipe(loaded, Path(folder), where=recipe, device=device)


def main() -> None:
    """Read the command line and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("changes", nargs="*", help="key.path=value")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="compute on processors")
    args = parser.parse_args()
    # Ray runs its processes elsewhere, so names are made absolute here.
    recipe, folder = str(args.recipe.resolve()), str(args.folder.resolve())
    device = "cpu" if args.cpu else "cuda"
    launch_on_ray(work, (recipe, args.changes, folder, device), args.processes, not args.cpu)


if __name__ == "__main__":
    main()
