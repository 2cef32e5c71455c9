"""What pyproject.toml cannot say: a wheel holds the repository's recipes/ as rwkvseg/recipes."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """An editable installation finds recipes/ where it lies, see training/shipped_recipes.py."""

    def run(self) -> None:
        """Build as ever, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "rwkvseg", "recipes")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(Path(__file__).parent / "recipes", target)


setup(cmdclass={"build_py": BuildWithRecipes})
