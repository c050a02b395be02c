"""One command at a time on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.core import MissingEnvironmentError
from autotune.machine.gpu_lock import hold_gpus, lock_folders
from autotune.util import lockfile

HOLD = """
import sys
from pathlib import Path
from autotune.machine.gpu_lock import hold_gpus
with hold_gpus([0, 1], [Path(sys.argv[1])]):
    print("held", flush=True)
    input()
"""


def test_the_holder_is_named_and_death_frees(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(MissingEnvironmentError) as error,
            hold_gpus([2, 1], [folder]),
        ):
            pass
        assert f"GPU 1 is being measured on by process {other.pid} (since 2" in str(error.value)
        with hold_gpus([2], [folder]):  # what was taken before the refusal was given back
            pass
        other.kill()
    with hold_gpus([0, 1, 2], [folder]):
        pass


def test_what_is_done_meanwhile_fails_as_itself(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), hold_gpus([0], [tmp_path]):
        raise OSError("mine")
    with hold_gpus([0], [tmp_path]):
        pass


# ------------------------------------------------------------------------------------------
# what somebody else put there (predictable lock folder in the temporary folder)

ANOTHER = 54321


def refused(folder: Path) -> str:
    with pytest.raises(MissingEnvironmentError) as caught, hold_gpus([0], [folder]):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of another user")
def test_a_folder_of_another_user_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    folder.mkdir(mode=0o700)
    os.chown(folder, ANOTHER, ANOTHER)
    assert f"{folder}: belongs to another user ({ANOTHER})" in refused(folder)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_reported(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(mode)
    assert f"{folder}: may be written by other users" in refused(folder)


def test_a_link_to_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "locks").symlink_to(tmp_path / "mine")
    assert "is no folder" in refused(tmp_path / "locks")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "hard link", "folder", "socket"])
def test_what_is_no_lock_file_is_neither_written_nor_waited_for(kind: str, tmp_path: Path) -> None:
    folder, precious = tmp_path / "locks", tmp_path / "precious"
    folder.mkdir(mode=0o700)
    precious.write_text("keep me")
    place = folder / "gpu-0.lock"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "hard link":
        place.hardlink_to(precious)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
    else:
        place.symlink_to(precious if kind == "link" else tmp_path / "absent")
    assert str(place) in refused(folder)
    assert precious.read_text() == "keep me"
    assert not (tmp_path / "absent").exists()


def test_content_that_is_no_note_of_ours_is_kept(tmp_path: Path) -> None:
    (tmp_path / "gpu-0.lock").write_text("somebody's words")
    tmp_path.chmod(0o700)
    with hold_gpus([0], [tmp_path]):
        pass
    assert (tmp_path / "gpu-0.lock").read_text() == "somebody's words"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_lock_files_have_the_modes_of_the_user(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with hold_gpus([0], [tmp_path / "locks"]):
            mode = (tmp_path / "locks" / "gpu-0.lock").stat().st_mode & 0o777
    finally:
        os.umask(before)
    assert mode == 0o666 & ~umask
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700


def test_the_place_does_not_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lock_folders()
    for name in ("TMPDIR", "TMP", "TEMP", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(name, "/elsewhere")
    assert lock_folders() == before


def test_a_planted_folder_does_not_keep_us_off_where_another_place_is_ours(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted").chmod(0o777)
    places = [tmp_path / "planted", tmp_path / "ours"]
    with hold_gpus([0], places):
        assert "is being measured on by process" in refused(places[1])


def test_containers_that_share_a_folder_share_the_lock(tmp_path: Path) -> None:
    """Each has a temporary folder and indices of its own; the UUID is the GPU's."""
    one, other, shared = tmp_path / "one", tmp_path / "other", tmp_path / "shared"
    shared.mkdir()
    with hold_gpus([0], [one], {0: "GPU-1/../x"}, shared):
        with (
            pytest.raises(MissingEnvironmentError, match="GPU 3 is being measured on"),
            hold_gpus([3], [other], {3: "GPU-1/../x"}, shared),
        ):
            pass
        with hold_gpus([3], [other], {3: "GPU-2"}, shared):
            pass
    assert {path.parent for path in shared.rglob("*")} == {shared}


def test_another_index_of_the_same_gpu_is_the_same_lock(tmp_path: Path) -> None:
    """In a container that sees the user's locks, GPU 3 of the machine may be number 0."""
    with hold_gpus([3], [tmp_path / "locks"], {3: "GPU-abc"}):
        with (
            pytest.raises(MissingEnvironmentError, match="GPU 0 is being measured on"),
            hold_gpus([0], [tmp_path / "locks"], {0: "GPU-abc"}),
        ):
            pass
        with hold_gpus([3], [tmp_path / "locks"], {3: "GPU-other"}):
            pass


def test_a_note_that_is_none_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that wrote nothing, or what nobody can read, is another process."""
    monkeypatch.setattr(lockfile, "_PATIENCE_SECONDS", 0.05)
    path = tmp_path / "gpu-0.lock"
    for words in ("", "[" * 5000, '{"pid": "\\u001b[2J", "since": "x"}', "\x1b[31m"):
        path.write_text(words)
        lock = lockfile.Lock(path)
        assert lock.acquire()
        try:
            tmp_path.chmod(0o700)
            assert "by another process;" in refused(tmp_path)
        finally:
            lock.release()
