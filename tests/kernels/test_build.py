"""Which kernels a machine has, compiling and loading them."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from nextstep.kernels import build, targets

kernels = pytest.mark.skipif(not build.is_available(), reason="no kernels here")
AVX2 = next(target for target in targets.TARGETS if target.name == "avx2")


def library() -> Path:
    """This machine's compiled kernels."""
    own = build.target()
    assert own is not None
    build.load(own)
    return targets.library_file(own)


def refuse(error: Exception) -> Callable[..., object]:
    def load(own: object) -> object:
        raise error

    return load


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("compiler", lambda: "no-such-compiler", "no compiler no-such-compiler"),
        ("load", refuse(subprocess.CalledProcessError(1, "g++", "", "a\nb")), "g\\+\\+: b"),
        ("load", refuse(OSError("no room")), "written or loaded: no room"),
    ],
)
def test_a_machine_that_could_says_why_it_does_not(
    name: str, value: object, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(targets.SWITCH, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "target", lambda: AVX2)
    monkeypatch.setattr(shutil, "which", lambda name: None if name.startswith("no") else name)
    monkeypatch.setattr(build, "library_file", lambda own: tmp_path / "none.so")
    monkeypatch.setattr(build, name, value)
    with pytest.warns(UserWarning, match=word):
        reason = build.why_not.__wrapped__()
    monkeypatch.setattr(build, "why_not", lambda: reason)
    assert build.is_hindered() and not build.is_available()


def test_a_machine_with_less_is_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    x86 = {target.name: target for target in targets.TARGETS if target.machine == "x86_64"}
    flags, may = x86["amx"].needs | x86["avxvnni"].needs, False
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(targets, "_may_use_tiles", lambda: may)
    monkeypatch.setattr(targets, "processor_flags", lambda: flags)
    best = targets.best
    assert best() == x86["avx512"]  # Linux denies the matrix units
    may = True
    assert best() == best("amx") == best("unknown") == x86["amx"]
    assert [best(name) for name in ("avx512", "avxvnni", "avx2")] == [
        x86[name] for name in ("avx512", "avxvnni", "avx2")
    ]
    flags = x86["avxvnni"].needs
    assert best("amx") == x86["avxvnni"]
    flags = x86["avx2"].needs
    assert best("avxvnni") == x86["avx2"]
    flags = frozenset(("sse4_2",))
    assert best() is None
    monkeypatch.setattr(build, "target", best)
    assert "need AVX2 with FMA, or NEON" in build.why_not.__wrapped__()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    flags = frozenset(("asimd", "asimddp"))
    assert getattr(best(), "name", "") == "dotprod" and getattr(best("neon"), "name", "") == "neon"
    flags = frozenset(("asimd",))
    assert getattr(best(), "name", "") == "neon"
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert best() is None


def test_who_switched_them_off_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(targets.SWITCH, "off")
    monkeypatch.setattr(build, "target", lambda: AVX2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = build.why_not.__wrapped__()
    monkeypatch.setattr(build, "why_not", lambda: reason)
    assert reason == "NEXTSTEP_KERNELS is off" and not build.is_hindered()


@kernels
def test_what_is_no_library_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, empty = library(), tmp_path / "kernels.so"
    empty.touch()
    monkeypatch.setattr(build, "library_file", lambda own: empty)
    monkeypatch.setattr(build, "compile_library", lambda own, to: shutil.copy(whole, to))
    assert isinstance(build.load.__wrapped__(AVX2), ctypes.CDLL)
    assert empty.read_bytes() == whole.read_bytes()


def test_shipped_kernels_are_used_and_a_change_of_the_source_passes_them_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(targets, "SHIPPED", tmp_path)
    monkeypatch.setattr(targets, "best", lambda name: AVX2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv(targets.SWITCH, raising=False)
    assert "there is no compiler no-such-compiler" in targets.in_use()
    (tmp_path / AVX2.file).touch()
    assert targets.library_file(AVX2) == tmp_path / AVX2.file
    assert targets.in_use() == "kernels for AVX2, compiled with the package"
    monkeypatch.setattr(targets, "sources", lambda: [Path(__file__)])
    assert targets.library_file(AVX2).parent == tmp_path / "cache" / "nextstep"
    monkeypatch.setenv(targets.SWITCH, "off")
    assert targets.in_use() == "torch (NEXTSTEP_KERNELS is off)"


def test_compiling_into_a_folder_leaves_no_old_library_and_names_what_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "kernels-avx2-0.so"
    old.touch()
    monkeypatch.setenv("CXX", "no-such-compiler")
    (line,) = targets.compile_into(tmp_path, [AVX2])
    assert line.startswith("no kernels for AVX2: ") and "no-such-compiler" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "right"), [("", ".cache"), ("here/cache", ".cache"), ("/tmp/own", "/tmp/own")]
)
def test_cache_that_is_empty_or_relative_is_unset(
    value: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert targets.cache_folder() == Path.home() / right / "nextstep"


def test_cache_folder_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "nextstep"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert build.own_folder(folder).stat().st_mode & 0o777 == 0o700
    assert build.own_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        build.own_folder(folder)


def test_library_that_another_user_may_have_planted_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, link = tmp_path / "kernels.so", tmp_path / "link.so"
    assert not build.is_trusted(library)
    library.touch(mode=0o700)
    link.symlink_to(library)
    assert build.is_trusted(library) and not build.is_trusted(link)
    for mode in (0o722, 0o720, 0o702):
        library.chmod(mode)
        assert not build.is_trusted(library)
    library.chmod(0o755)
    owner = library.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert not build.is_trusted(library)


@kernels
def test_planted_library_is_replaced_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, planted = library(), tmp_path / "kernels.so"
    planted.write_bytes(whole.read_bytes() + b"planted")
    planted.chmod(0o777)
    monkeypatch.setattr(build, "library_file", lambda own: planted)
    monkeypatch.setattr(build, "compile_library", lambda own, to: shutil.copy(whole, to))
    build.load.__wrapped__(AVX2)
    assert planted.read_bytes() == whole.read_bytes()


def test_compiled_training_code_lies_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    build.keep_compiled_code_private()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == tmp_path / "nextstep" / "inductor"
    assert folder.stat().st_mode & 0o777 == 0o700
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = "elsewhere"
    build.keep_compiled_code_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_default_folder_that_torch_writes_down_is_not_the_users_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    # Building an optimizer imports the compiler, which sets its default.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    build.keep_compiled_code_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "nextstep" / "inductor")


def test_compiled_training_code_of_others_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(build, "own_folder", refuse(PermissionError("belongs to another user")))
    build.keep_compiled_code_private()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert tmp_path not in folder.parents and folder.stat().st_mode & 0o777 == 0o700
