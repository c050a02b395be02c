"""What `autotune verify` says of every fused-MoE file that the installed vLLM ships.

    python benchmarks/verify_shipped.py > benchmarks/results/verify-shipped.md

All files by their bytes, names and arithmetic; those of the GB10 and the RTX PRO 6000 compiled too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autotune.kernels.check.verify import Judge, Verified
from autotune.kernels.check.verify_all import Options, files_in, grouped, verify_all
from autotune.kernels.compile.kernel_source import kernel_info

COMPILED = ("NVIDIA_GB10", "NVIDIA_RTX_PRO_6000_Blackwell")


def said(done: Verified) -> str:
    """What matters in words, notes as their codes."""
    found = grouped(done.findings)
    words = [
        f"**{f.level}**{' M=' + ','.join(map(str, f.keys)) if f.keys else ''}: {f.text}"
        for f in found
        if f.level != "note"
    ]
    notes = sorted({f.code for f in found if f.level == "note"})
    return "; ".join([*words, *notes]).replace("|", "/")


def table(files: Sequence[Verified]) -> list[str]:
    """One line per file."""
    return [
        "| file | judged by | keys | worst | said |",
        "|:--|:--|--:|:--|:--|",
        *(
            f"| `{one.path.name}` | {one.device if one.limits else ''} | {len(one.rows)} | "
            f"{one.worst() or ''} | {said(one)} |"
            for one in files
        ),
    ]


def main() -> None:
    kernel = kernel_info()
    paths = files_in([kernel.path.parent / "configs"])
    files = verify_all(paths, Options(Judge()), lambda _: None)
    own = [path for path in paths if any(device in path.name for device in COMPILED)]
    compiled = verify_all(own, Options(Judge(), compile=True, workers=2), lambda _: None)
    worst = Counter(one.worst() or "nothing" for one in files)
    codes = Counter((f.level, f.code) for one in files for f in grouped(one.findings))
    lines = [
        "# What `autotune verify` says of the files that vLLM ships",
        "",
        f"vLLM {kernel.vllm_version}, Triton {kernel.triton_version}, {len(files)} files; made by "
        "`python benchmarks/verify_shipped.py > benchmarks/results/verify-shipped.md`. Losses "
        "between keys are PREDICTED. Notes are given by their codes; `autotune verify FILE` says "
        "them in words.",
        "",
        f"At worst: {', '.join(f'{n} {level}' for level, n in worst.most_common())}.",
        "",
        "| level | code | times said |",
        "|:--|:--|--:|",
        *(f"| {level} | {code} | {n} |" for (level, code), n in sorted(codes.items())),
        "",
        "## Compiled for their own device",
        "",
        *table(compiled),
        "",
        "## All files",
        "",
        *table(files),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
