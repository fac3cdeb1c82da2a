"""Wheels carry the recipes, and the kernels for every instruction set of their kind of processor.

All else is in pyproject.toml. Without a C++ compiler the wheel fits any machine and has none.
"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path("nextstep/kernels")


def load_targets() -> ModuleType:
    """`nextstep.kernels.targets`, without the package, whose libraries are not here."""
    spec = importlib.util.spec_from_file_location("targets", "src" / KERNELS / "targets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


targets = load_targets()


def is_compiled() -> bool:
    """Whether this wheel has kernels."""
    return bool(targets.of_machine() and shutil.which(targets.compiler()))


class BuildPackage(build_py):
    """Copies the package, puts the recipes into the copy and compiles into it."""

    def run(self) -> None:
        """As `build_py` has it.

        An editable installation finds the recipes beside its source and compiles at the first use.
        """
        super().run()
        if self.editable_mode:
            return
        recipes = Path(self.build_lib) / "nextstep/recipes"
        recipes.mkdir(parents=True, exist_ok=True)
        for recipe in Path("recipes").glob("*.yaml"):
            shutil.copy(recipe, recipes)
        if is_compiled():
            folder = Path(self.build_lib) / KERNELS / "lib"
            for line in targets.compile_into(folder, targets.of_machine()):
                self.warn(line)


class Compiled(Distribution):
    """What makes a wheel one for its kind of processor."""

    def has_ext_modules(self) -> bool:
        """Whether files belong with those of the machine."""
        return is_compiled()


class EveryPython(bdist_wheel):
    """A wheel in which nothing depends on Python's version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, its binary interface, machine."""
        return ("py3", "none", super().get_tag()[2])


setup(distclass=Compiled, cmdclass={"build_py": BuildPackage, "bdist_wheel": EveryPython})
