"""A git checkout on this disk: one commit on a new branch, without touching what is checked out.

Git's plumbing writes the objects and a temporary index, so that the user's index, working tree and
branch stay as they are. Nothing is fetched or pushed, and no program of the checkout's
configuration runs: no hook, no file-system monitor, no filter, no external diff, no signing
program, no credential helper.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.util import edge

_LOCAL = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none", "GIT_OPTIONAL_LOCKS": "0"}
"""No protocol is allowed: a partial clone would fetch what it lacks."""
_QUIET = [
    word
    for setting in (
        f"core.hooksPath={os.devnull}",
        "core.fsmonitor=false",
        "core.untrackedCache=false",
        f"core.attributesFile={os.devnull}",
        "core.sshCommand=false",
        "core.askPass=",
        "core.pager=cat",
        "core.editor=false",
        "core.gitProxy=",
        "credential.helper=",
        "commit.gpgSign=false",
        "tag.gpgSign=false",
        "log.showSignature=false",
        "gpg.program=false",
        "gpg.openpgp.program=false",
        "gpg.ssh.program=false",
        "gpg.x509.program=false",
        "gpg.ssh.defaultKeyCommand=",
        "diff.external=",
        "diff.trustExitCode=false",
        "interactive.diffFilter=",
        "status.submoduleSummary=false",
        "diff.ignoreSubmodules=all",
        "submodule.recurse=false",
        "fetch.recurseSubmodules=false",
        "gc.auto=0",
        "maintenance.auto=false",
        "protocol.allow=never",
        "uploadpack.packObjectsHook=",
        "trace2.eventTarget=",
        "extensions.partialClone=",
        "core.alternateRefsCommand=false",
        "log.mailmap=false",
        "mailmap.file=",
        "mailmap.blob=",
        "core.excludesFile=",
    )
    for word in ("-c", setting)
]
"""Every setting of git by which a checkout's configuration would run a program, switched off."""
_RUNS = re.compile(
    rb"filter\..*\.(clean|smudge|process|required)|diff\..*\.(command|textconv)",
    re.IGNORECASE | re.DOTALL,
)
_ABSENT = "0" * 40
_GIT_S = 60
_MOST_REFS = 50_000
_GIT_BYTES = 8 << 30
"""Of address space: git reads some files of a checkout whole, such as a link to /dev/zero."""
_PERSON = re.compile(r"[^<>\n]*[^<>\s][^<>\n]* <[^<>@\s]+@[^<>@\s]+>")


@dataclass(frozen=True)
class Checkout:
    """A checkout and the commit that a new branch starts from.

    Attributes:
        path: its top folder.
        flag: of the command line, named in errors.
        base: the commit, in hex.
        branch: checked out, where the base is its tip by name; None for any other base.
    """

    path: Path
    flag: str
    base: str
    branch: str | None

    @classmethod
    def open(cls, path: Path, flag: str, base: str = "HEAD") -> Self:
        """Look at a checkout.

        Args:
            path: its top folder.
            flag: of the command line, named in errors.
            base: what the branch starts from.

        Raises:
            BadInputError: no checkout's top folder, or no such commit.
            MissingEnvironmentError: git is not installed.
        """
        if not path.is_dir():
            raise BadInputError(f"{flag} {path}: no such folder")
        if (odd := _no_file_in(path / ".git")) is not None:
            raise BadInputError(f"{flag} {path}: {odd} is no file, and git would wait for it")
        unborn = cls(path, flag, "", None)
        top = unborn._try("rev-parse", "--show-toplevel")
        if top.returncode:
            said = _last_line(top.stderr)
            raise BadInputError(f"{flag} {path}: not a git checkout ({said})")
        if Path(top.stdout.decode().strip()).resolve() != path.resolve():
            raise BadInputError(
                f"{flag} {path}: inside the git checkout {top.stdout.decode().strip()}, not its top"
            )
        commit = unborn._try(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}"
        )
        if commit.returncode:
            raise BadInputError(f"{flag} {path}: has no commit {base!r}")
        branch = ""
        if base == "HEAD":
            found = unborn._try("symbolic-ref", "--quiet", "--short", "HEAD")
            branch = found.stdout.decode().strip()
        return cls(path.resolve(), flag, commit.stdout.decode().strip(), branch or None)

    def describe(self) -> str:
        """The base for people: a tag and distance where there is one, else the short hash."""
        return self._git("describe", "--tags", "--always", self.base).strip()

    def dirty(self) -> bool:
        """Whether the working tree or the index differ from HEAD."""
        return bool(self._git("status", "--porcelain", "--untracked-files=no").strip())

    def read(self, name: str) -> bytes | None:
        """A file of the base commit; None if there is none.

        Raises:
            BadInputError: it is there and cannot be read, as in a clone without its blobs.
        """
        if not self._git("ls-tree", self.base, "--", name):
            return None
        size = self._try("cat-file", "-s", f"{self.base}:{name}").stdout.strip()
        if len(size) > len(str(edge.LARGE)) or int(size or 0) > edge.LARGE:
            raise BadInputError(
                f"{self.flag} {self.path}: its {name} is larger than any file of vLLM's"
            )
        found = self._try("cat-file", "blob", f"{self.base}:{name}")
        if found.returncode:
            raise BadInputError(
                f"{self.flag} {self.path}: lacks the content of {name} (a partial clone?), and "
                f"nothing is fetched here; run `git checkout {self.base[:12]}` there first"
            )
        return found.stdout

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder of the base commit; empty if there is none."""
        listed = self._try("ls-tree", "-z", "--name-only", f"{self.base}:{folder}")
        return [name for name in listed.stdout.decode().split("\0") if name]

    def last_subject(self, name: str) -> str:
        """The title of the last commit that touched a file."""
        return self._git("log", "-1", "--format=%s", self.base, "--", f":(literal){name}").strip()

    def person(self) -> str:
        """Who commits here, as ``Name <mail>``.

        Raises:
            BadInputError: git does not know.
        """
        found = self._try("var", "GIT_AUTHOR_IDENT")
        text = found.stdout.decode().strip().rpartition(">")[0] + ">"
        if found.returncode or _PERSON.fullmatch(text) is None:
            raise BadInputError(
                f"{self.flag} {self.path}: git knows no user.name and user.email to sign off "
                'with; set them, or give --signoff "Name <mail>"'
            )
        return text

    def check_branch(self, branch: str) -> None:
        """Refuse a branch that exists, or cannot.

        Raises:
            BadInputError: so.
        """
        if self._try("check-ref-format", "--branch", branch).returncode:
            raise BadInputError(f"--branch {branch!r}: not a name that git allows")
        if self._try("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}").returncode == 0:
            raise BadInputError(
                f"{self.flag} {self.path}: has a branch {branch} already; name another with "
                f"--branch, or delete it: git branch -D {branch}"
            )

    def commit_file(self, branch: str, name: str, data: bytes, message: str, person: str) -> str:
        """Make ``branch`` from the base with one commit that writes one file.

        Args:
            branch: new.
            name: of the file, from the top folder.
            data: its bytes.
            message: of the commit.
            person: author and committer, as ``Name <mail>``.

        Returns:
            The commit, in hex.

        Raises:
            BadInputError: the branch exists, or git refuses.
        """
        self.check_branch(branch)
        who, _, mail = person.rpartition(" <")
        with tempfile.TemporaryDirectory(prefix="autotune-git-") as folder:
            env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            for role in ("AUTHOR", "COMMITTER"):
                env |= {f"GIT_{role}_NAME": who, f"GIT_{role}_EMAIL": mail.removesuffix(">")}
            blob = self._git("hash-object", "-w", "--stdin", given=data).strip()
            self._git("read-tree", self.base, env=env)
            entry = f"100644,{blob},{name}"
            self._git("update-index", "--add", "--cacheinfo", entry, env=env)
            tree = self._git("write-tree", env=env).strip()
            made = self._git(
                "commit-tree", tree, "-p", self.base, "-F", "-", env=env, given=message.encode()
            ).strip()
        self._git("update-ref", "-m", "autotune export", f"refs/heads/{branch}", made, _ABSENT)
        return made

    def _git(self, *args: str, env: dict[str, str] | None = None, given: bytes = b"") -> str:
        done = self._try(*args, env=env, given=given)
        if done.returncode:
            raise BadInputError(
                f"{self.flag} {self.path}: git {args[0]} failed: {_last_line(done.stderr)}"
            )
        return done.stdout.decode(errors="replace")

    @functools.cached_property
    def _no_filters(self) -> list[str]:
        """Filters and drivers have names of their own: those that are configured, switched off."""
        listed = subprocess.run(  # noqa: S603 - reads the configuration, runs nothing of it
            ["git", "-C", str(self.path), "config", "--list", "--name-only", "-z"],  # noqa: S607
            capture_output=True,
            check=False,
            env=_environment() | _LOCAL,
            timeout=_GIT_S,
        )
        found = []
        for name in listed.stdout.split(b"\0"):
            if _RUNS.fullmatch(name):
                off = "false" if name.endswith(b".required") else ""
                found += ["-c", f"{os.fsdecode(name)}={off}"]
        return found

    def _try(
        self, *args: str, env: dict[str, str] | None = None, given: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(  # noqa: S603 - no shell, and git is the user's own
                ["git", "-C", str(self.path), *_QUIET, *self._no_filters, *args],  # noqa: S607
                input=given,
                capture_output=True,
                check=False,
                env=_environment() | _LOCAL | (env or {}),
                timeout=_GIT_S,
                preexec_fn=_within_memory,
            )
        except subprocess.TimeoutExpired:
            raise BadInputError(
                f"{self.flag} {self.path}: git {args[0]} did not end within {_GIT_S} s"
            ) from None
        except FileNotFoundError:
            raise MissingEnvironmentError("git is not installed; install it") from None


def _no_file_in(folder: Path) -> Path | None:
    """A pipe or a device among git's own files, but for its objects; None if there is none."""
    seen = 0
    for place, folders, names in os.walk(folder):
        if Path(place).name == "objects":
            folders[:] = ["info"]
        for name in names:
            seen += 1
            if seen > _MOST_REFS:
                return None
            with contextlib.suppress(OSError):  # a link to nothing, which git takes so
                mode = (Path(place) / name).stat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    return Path(place, name)
    return None


def _within_memory() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    least = _GIT_BYTES if most == resource.RLIM_INFINITY else min(_GIT_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (least, most))


def _environment() -> dict[str, str]:
    """Ours, without what would name another repository (as a hook that runs us has it) or program.

    Where git's configuration lies (``HOME``, ``GIT_CONFIG_GLOBAL``) is the user's own choice.
    """
    return {name: value for name, value in os.environ.items() if not _elsewhere(name)}


def _elsewhere(name: str) -> bool:
    if name in {"PAGER", "EDITOR", "VISUAL", "SSH_ASKPASS"}:
        return True
    return name.startswith(
        ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY", "GIT_TRACE", "GIT_SSH", "GIT_EXTERNAL")
    ) or name in {
        "GIT_ASKPASS",
        "GIT_EDITOR",
        "GIT_PAGER",
        "GIT_PROXY_COMMAND",
        "GIT_COMMON_DIR",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
    }


def _last_line(text: bytes) -> str:
    """What git complains of: its fatal line, else the last."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (fatal or lines or ["no reason given"])[0]


def person(text: str, flag: str) -> str:
    """``Name <mail>``, checked.

    Raises:
        BadInputError: it is something else.
    """
    if _PERSON.fullmatch(text.strip()) is None or not text.isprintable():
        raise BadInputError(f"{flag} {text!r}: expected a name and an address: Ann Lee <ann@x.org>")
    return text.strip()
