"""The wheel: the package, and inside it what the C sources beside this folder build (the kittygen command, libkitty, specs)."""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent.parent
BINARIES = ("kittygen", "libkitty.so", "libcjson.so.1")


class BuildNative(build_py):
    def run(self):
        super().run()
        if not (ROOT / "CMakeLists.txt").is_file():
            raise SystemExit("kittygen's C sources are not beside this folder: build the wheel in the source tree (pip wheel ./python)")
        work = Path(self.build_lib).resolve().parent / "native"
        configure = ["cmake", "-S", str(ROOT), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(work), "-j", str(os.cpu_count() or 1)], check=True)
        target = Path(self.build_lib) / "kittygen" / "native"
        target.mkdir(parents=True, exist_ok=True)
        for name in BINARIES:
            shutil.copy2(work / name, target / name)  # follows links: a wheel has none
        for name in ("specs", "templates"):
            shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True)


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # no Python extension inside


class NativeDistribution(Distribution):
    def has_ext_modules(self):
        return True  # for one kind of machine


setup(distclass=NativeDistribution, cmdclass={"build_py": BuildNative, "bdist_wheel": PlatformWheel})
