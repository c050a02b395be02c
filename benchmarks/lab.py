"""Tables and figures of README.md and docs/, written from the result files by cog.

    python -m cogapp -r -P -I . README.md docs/lab/*.md docs/explanation/*.md

rewrites the blocks between ``[[[cog`` and ``[[[end]]]``; ``tests/test_docs.py`` fails where one is
not what its file says. A path is relative to ``benchmarks/results``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import replay_grid
from benchmarks.output_gate import rate

RESULTS = Path(__file__).parent / "results"


def read(file: str) -> Any:
    return json.loads((RESULTS / file).read_text())


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 99) -> None:
    """Print a Markdown table whose first ``right`` columns are aligned to the right."""
    print(f"| {' | '.join(head)} |")
    print("|" + "|".join("--:" if column < right else ":--" for column in range(len(head))) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def gpus(environment: dict[str, Any]) -> str:
    names = [gpu["name"] for gpu in environment["gpus"]]
    return f"{len(names)} × {names[0]}" if len(names) > 1 else f"one {names[0]}"


def versions(environment: dict[str, Any]) -> str:
    packages = environment["packages"]
    return ", ".join(
        f"{shown} {packages[name]}"
        for shown, name in (("vLLM", "vllm"), ("torch", "torch"), ("Triton", "triton"))
    )


def environment(file: str) -> None:
    """Print where a result was measured; ``file`` is a provenance.json or best.json."""
    found = read(file)["environment"]
    uuids = ", ".join(gpu["uuid"] for gpu in found["gpus"])
    print(
        f"Measured on {gpus(found)} ({uuids}), driver {found['gpus'][0]['driver']}, "
        f"{versions(found)}, Python {found['python']}, {found['cpus']} CPU cores."
    )


def changed(rows: Sequence[dict[str, Any]]) -> str:
    differ = sum(not row["is_default"] for row in rows)
    return f"{differ} of {len(rows)} rows differ from vLLM's default"


def caption(folder: str) -> None:
    found = read(f"{folder}/provenance.json")
    where = found["environment"]
    print(
        f"*Gemma 4 26B-A4B in fp8 on {gpus(where)} ({versions(where)}): "
        f"{found['geometric_mean_speedup']:.2f}× in the geometric mean over the file's rows.*"
    )


def cells(row: dict[str, Any]) -> list[str]:
    shown = [str(row["m"]), f"{row['default_us']:.1f}", f"{row['us']:.1f}"]
    if row["is_default"]:
        return [*shown, "default", ""]
    interval = f"{row['speedup_low']:.3f} to {row['speedup_high']:.3f}"
    return [*shown, f"{row['speedup']:.3f}×", interval]


HEAD = ("M", "default µs", "tuned µs", "speed-up", "95 % interval")


def excerpt(folder: str, batch_sizes: Sequence[int]) -> None:
    """Print some rows of a tuned file and its sum."""
    found = read(f"{folder}/provenance.json")
    table(HEAD, [cells(row) for row in found["rows"] if row["m"] in batch_sizes], right=4)
    print(
        f"\n{changed(found['rows'])}; {found['geometric_mean_speedup']:.2f}× in the geometric mean "
        f"over all keys; {found['counts']['ok']:,} trials, from start-up to "
        f"the last confirmation in {total_s(found):.0f} s."
    )


def total_s(found: dict[str, Any]) -> float:
    return float(
        sum(found["spent"][part] for part in ("start_s", "search_s", "confirm_s", "between_s"))
    )


def kernel(folder: str) -> None:
    """Print command, environment, times and every row of a measured file."""
    found = read(f"{folder}/provenance.json")
    print(f"    {found['command']}\n")
    environment(f"{folder}/provenance.json")
    spent = found["spent"]
    own = spent["propose_s"] + spent["store_s"]
    print(
        f"Start-up {spent['start_s']:.0f} s, search {spent['search_s']:.0f} s, confirmation "
        f"{spent['confirm_s']:.0f} s, between the keys {spent['between_s']:.0f} s; proposing and "
        f"the database took {own:.1f} s of it."
    )
    counts = ", ".join(f"{number:,} {outcome}" for outcome, number in found["counts"].items())
    print(
        f"Trials: {counts}. {changed(found['rows'])}; {found['geometric_mean_speedup']:.3f}× in "
        "the geometric mean over all keys."
    )
    errors = [row["relative_error"] for row in found["rows"] if row["relative_error"]]
    print(f"The largest relative error against float32 is {max(errors):.4f}.\n")
    table(HEAD, [cells(row) for row in found["rows"]], right=4)


def summary(*folders: str) -> None:
    """Print one row for each measured file: times, trials, gain."""
    rows = []
    for folder in folders:
        found = read(f"{folder}/provenance.json")
        spent = found["spent"]
        own = spent["propose_s"] + spent["store_s"]
        total = total_s(found)
        slowest = min(row["speedup"] for row in found["rows"])
        rows.append([
            folder, gpus(found["environment"]), f"{total:.0f} s", f"{spent['start_s']:.0f} s",
            f"{spent['search_s']:.0f} s", f"{spent['confirm_s']:.0f} s", f"{own / total:.0%}",
            f"{sum(not row['is_default'] for row in found['rows'])} of {len(found['rows'])}",
            f"{found['geometric_mean_speedup']:.3f}×", f"{slowest:.3f}×",
        ])  # fmt: skip
    table(("run", "GPU", "four stages", "start-up", "search", "confirming",
           "proposing and database",
           "rows changed", "geometric mean", "least row"), rows, right=0)  # fmt: skip


def served(*folders: str) -> None:
    """Print what a server gained from a MoE file, in fresh boots against vLLM's default."""
    rows = []
    for folder in folders:
        best = read(f"{folder}/best.json")
        where = best["environment"]
        gained = {}
        for one in best["objectives"]:
            low, high = one["interval"]
            gained[one["objective"]] = f"{one['speedup']:.3f}× ({low:.3f} to {high:.3f})"
        crowd = max(best["scenario"]["concurrency"])
        rows.append(
            [
                f"{gpus(where)}, {versions(where)}",
                gained["single"],
                f"{crowd}: {gained['aggregate']}",
                "no clear gain" if best["best"]["is_baseline"] else "faster",
            ]
        )
    table(("server", "one stream", "many streams", "verdict (both)"), rows, right=0)


@functools.cache
def replayed(grid: str, *args: str) -> str:
    """Return what ``benchmarks.replay_grid`` prints of a recorded grid."""
    said = io.StringIO()
    patched = mock.patch.object(sys, "argv", ["replay_grid", str(RESULTS / grid), *args])
    with patched, contextlib.redirect_stdout(said):
        replay_grid.main()
    return said.getvalue()


def grid(file: str, crowd: int, *args: str) -> None:
    """Print tok/s by γ of a recorded grid, and what the forecast makes of γ=0 and the probe."""
    out = replayed(file, *args)
    lines = [line.split() for line in out[out.index("\ngamma ") :].splitlines()]
    known = {int(words[0]): words[1:] for words in lines if words and words[0].isdigit()}
    rows = []
    for gamma, words in known.items():
        one, _, _, many, _, _ = words
        made_from_it = gamma in {0, max(known)}
        shown = [one, "", "", many, "", ""] if made_from_it else words
        rows.append([str(gamma), *(word.replace("%", " %") for word in shown)])
    table(("γ", "1 stream", "predicted", "error", f"{crowd} streams", "predicted", "error"), rows)


def cold_weights() -> None:
    """Print the gain with one layer's weights beside that with thirty."""
    found: dict[int, list[str]] = {}
    for row in read("h200-serving/cold-weights.json")["timed"]:
        if row["row"] == "file":
            value, low, high = row["over"]
            found.setdefault(row["m"], []).append(f"{value:.3f} ({low:.3f} to {high:.3f})")
    table(
        ("M", "file ÷ default, speed, one layer", "thirty layers"),
        [[str(m), *shown] for m, shown in found.items()],
    )


def client() -> None:
    """Print our load client against ``vllm bench serve``."""
    found = read("client-vs-vllm-bench.json")
    rows = []
    for row in found["rows"]:
        shown = [row["server"], f"`{row['endpoint']}`", str(row["concurrency"])]
        for metric in ("tok_s", "tpot_ms.mean", "itl_ms.mean", "itl_ms.p99"):
            one = row["metrics"].get(metric)
            shown.append(f"{one['difference']:+.1%}".replace("%", " %") if one else "")
        rows.append(shown)
    table(("server", "endpoint", "concurrency", "tok/s", "mean TPOT", "mean ITL", "p99 ITL"),
          rows, right=0)  # fmt: skip


def strategies() -> None:
    """Print the regret of search strategies, replayed on the landscape."""
    found = read("strategies-h200.json")["rows"]
    sizes = list(found[0]["median"])
    rows = [
        [f"{row['effort']} ({row['trials']})", f"{row['strategy']} ({row['seeds']})",
         *(f"{row['median'][m]:.1%} / {row['worst'][m]:.1%}" for m in sizes)]
        for row in found
    ]  # fmt: skip
    table(("effort", "strategy (seeds)", *(f"M={m}" for m in sizes)), rows, right=0)


def samplers() -> None:
    """Print what each sampler of servers needs on the recorded grids."""
    rows = [
        [row["grid"].split("/")[0], row["objective"], f"{row['sampler']} ({row['seeds']})",
         f"{row['reached']} of {row['seeds']}",
         "" if row["near_mean"] is None else f"{row['near_mean']:.1f} / {row['near_worst']}",
         f"{row['boots_mean']:.1f} of {row['settings']}", f"{row['behind_worst']:.1%}"]
        for row in read("samplers.json")["rows"]
    ]  # fmt: skip
    heads = ("grid", "objective", "sampler (seeds)", "within 1 %", "after boots: mean / worst",
             "boots in all", "behind, worst")  # fmt: skip
    table(heads, rows, right=0)


def gb10() -> None:
    """Print where the cost model puts the rows that won on real GB10s."""
    found = read("gb10-published.json")
    before, after = (found["places"][k] for k in ("without the two figures", "as shipped"))
    left = found["left_out"]["judged"]
    rows = []
    for name, now in after.items():
        bold = "**" if name == "all" else ""
        was, out = before[name], left.get(name) if name != "all" else None
        rows.append([
            f"{bold}{name}{bold}", str(now["rows"]), f"{was['in_top']:.0%}",
            f"{now['in_top']:.0%} ({now['median']:.1%})",
            "" if out is None else f"{out['in_top']:.0%} ({out['median']:.1%})",
        ])  # fmt: skip
    rows.append(["**all that were fitted**", str(left["all"]["rows"]), "", "",
                 f"**{left['all']['in_top']:.0%}** ({left['all']['median']:.1%})"])  # fmt: skip
    new = found["unseen"]
    rows.append(["**vllm-tune's under block scales, not seen before**", str(new["rows"]), "",
                 f"**{new['in_top']:.0%}** ({new['median']:.1%})", ""])  # fmt: skip
    heads = ("file", "rows", "in the top 5 %, before", "now (median place)",
             "left out (median place)")  # fmt: skip
    table(heads, rows, right=0)


def gb10_searched() -> None:
    """Print where rows lie among what their tuners tried, and what an exact model would reach."""
    rows = [
        [name, str(one["rows"]), f"{one['candidates']:.0f}", f"{one['in_top']:.0%}",
         *(" / ".join(f"{share:.0%}" for share in one[which].values())
           for which in ("exact", "exact_of_all"))]
        for name, one in read("gb10-published.json")["searched"].items()
    ]  # fmt: skip
    heads = ("files", "rows", "candidates tried (median)", "in their top 5 %",
             "exact model: of those tried", "exact model: of all")  # fmt: skip
    table(heads, rows, right=0)


def gb10_times() -> None:
    """Print published over predicted times."""
    rows = [
        [name, "vLLM's default" if which == "default" else "winners",
         ", ".join(f"{m}: {ratio:.2f}" for m, ratio in times.items())]
        for name, kinds in read("gb10-published.json")["us"].items()
        for which, times in kinds.items()
    ]  # fmt: skip
    table(("file", "rows", "published over predicted time, by M"), rows, right=0)


def predicted_choice() -> None:
    """Print what files that were only predicted would cost."""
    found = read("predicted-choice.json")
    named = [
        *found["runs"].items(),
        ("**all**", found["all"]),
        ("all, nothing compiled", found["estimated"]),
        *((f"left out: {name}", one) for name, one in found["left_out"].items()),
    ]
    rows = [
        [name, str(one["batch_sizes"]), f"{one['median_regret']:.1%}",
         f"{one['worst_regret']:.1%}", str(one["over_5_percent"]), _behind(one)]
        for name, one in named
    ]  # fmt: skip
    heads = ("run", "batch sizes", "median behind the best", "worst", "over 5 %",
             "behind vLLM's default")  # fmt: skip
    table(heads, rows, right=0)


def _behind(one: dict[str, Any]) -> str:
    if not one["behind_default"]:
        return "none"
    return f"{one['behind_default']}, by {one['most_behind_default']:.1%} at most"


def drift() -> None:
    """Print what a device that drifts costs, with and without controls."""
    found = read("drift-h200.json")["regret"]
    rows = [
        [name, *(f"{found[way][name]['median']:.1%} / {found[way][name]['worst']:.1%}"
                 for way in ("without controls", "with controls"))]
        for name in found["with controls"]
    ]  # fmt: skip
    table(("device", "without controls: median / worst", "with"), rows, right=0)


def prediction() -> None:
    """Print how the cost model ranks the measured landscapes."""
    rows = []
    for shape, found in read("prediction-h200.json")["shapes"].items():
        for key in found["keys"]:
            default = key.get("default_measured_over_predicted")
            rows.append([
                shape, str(key["m"]), str(key["candidates"]), f"{key['rho']:.2f}",
                f"{key['top1_regret']:.1%}", f"{key['top10_regret']:.1%}",
                "" if default is None else f"{default:.2f}",
                f"{key['median_measured_over_predicted']:.2f}",
            ])  # fmt: skip
        middle = [
            statistics.median(key[name] for key in found["keys"])
            for name in ("rho", "top1_regret", "top10_regret")
        ]
        rows.append(
            [
                f"**{shape}**",
                "median",
                "",
                f"**{middle[0]:.2f}**",
                f"{middle[1]:.1%}",
                f"**{middle[2]:.1%}**",
                "",
                "",
            ]
        )
    table(("shape", "M", "candidates", "ρ", "top 1", "top 10", "default", "median of all"),
          rows, right=0)  # fmt: skip


def verdict(folder: str) -> None:
    """Print the verdict of a study of servers and where it ran."""
    best = read(f"{folder}/best.json")
    environment(f"{folder}/best.json")
    words = re.sub(r"/tmp/", "", best["verdict"])
    print(f"Verdict: {words}.")
    print(f"Boots: {best['boots']}.")


OBJECTIVES = {"geomean": "geometric mean", "single": "one stream", "aggregate": "all streams"}


def draws(file: str, *args: str) -> None:
    """Print how the search does with one boot of each γ, drawn at random."""
    out = replayed(file, *args)
    rows = []
    for objective, shown in OBJECTIVES.items():
        block = out[out.index(f"\n{objective} ") :]
        line = block[block.index("one boot of each") :].partition("\n")[0]
        shares = [f"{share} %" for share in re.findall(r"([\d.]+)%", line)]
        boots = re.findall(r"([\d.]+) boots", line)[0]
        rows.append([shown, boots, shares[0], shares[1], shares[4], shares[5]])
    table(
        ("objective", "boots", "behind, mean", "at worst", "all booted: mean", "at worst"),
        rows,
        right=0,
    )


def stock_tuner() -> None:
    """Print what vLLM's own tuner was timed at, and what that extrapolates to."""
    found = read("h200-gemma4/stock-tuner.json")
    print(
        f"Timed on {found['candidates']} random candidates: "
        f"{found['seconds_per_candidate_m8_cold']:.2f} s for each at M=8, compiled cold, and "
        f"{found['seconds_per_candidate_m1024_compiled']:.2f} s at M=1024 with the kernel in "
        f"Triton's cache. Extrapolated, not run: {found['hours_for_all_keys']:.1f} hours for its "
        f"grid of {found['grid']:,} on {found['keys']} keys."
    )


def graphs(file: str) -> None:
    """Print servers side by side that capture other CUDA graphs, against the first."""
    found = read(file)["tok_s"]
    names = list(next(iter(found.values())))
    rows = []
    for name in names:
        cells = [name, *_against(found, names[0], name)]
        rows.append(cells)
    table(("graphs", *(f"{c} streams" for c in found)), rows)


def _against(found: dict[str, dict[str, list[float]]], first: str, name: str) -> Iterable[str]:
    for rates in found.values():
        ratios = [b / a for a, b in zip(rates[first], rates[name], strict=True)]
        middle = statistics.median(rates[name])
        yield (
            f"{middle:.0f}"
            if name == first
            else f"{middle:.0f} ({statistics.median(ratios):.3f}×; {min(ratios):.3f} to "
            f"{max(ratios):.3f})"
        )


def dial(matrix: str, static: str) -> None:
    """Print tokens per second of a dialled server beside those of servers of one gamma."""
    alone = read(static)["tok_s"]
    rows = []
    for row in read(matrix)["search"]:
        name, cells = f"gamma{row['gamma']}", [str(row["gamma"])]
        for c, level in row["levels"].items():
            ours = statistics.median(level["repeats"])
            theirs = alone[c].get(name)
            cells.append(f"{ours:.0f}")
            cells.append("" if theirs is None else f"{statistics.median(theirs):.0f}")
        rows.append(cells)
    levels = list(read(matrix)["search"][0]["levels"])
    heads = [h for c in levels for h in (f"dial, {c}", f"one γ, {c}")]
    table(("γ", *heads), rows)


def best_bold(rates: Sequence[float]) -> list[str]:
    """The rates as cells, the highest in bold."""
    best = max(rates)
    return [f"{rate:.0f}" if rate != best else f"**{rate:.0f}**" for rate in rates]


def real_model(file: str, level: str = "1") -> None:
    """Print tokens per second by gamma, and what of a draft was accepted, by kind of prompt."""
    found = read(file)["kinds"]
    gammas = [row["gamma"] for row in next(iter(found.values()))]
    head = (
        "prompts",
        *(f"γ={gamma}" for gamma in gammas),
        f"accepted by position at γ={gammas[-1]}",
    )
    rows = []
    for kind, cells_ in found.items():
        rates = [row["tok_s"].get(level) for row in cells_]
        shown = best_bold(rates)
        accepted = cells_[-1]["accepted"].get(level) or ()
        rows.append((kind, *shown, " ".join(f"{share:.2f}"[1:] for share in accepted)))
    table(head, rows)


def output_gate(file: str) -> None:
    """Print how often the gate refused sound and broken servers, with 95 % intervals."""
    found = read(file)
    names = {one["fault"]: None for one in found["by_fault"]}
    rows = [("none", "", _refused([found["sound"]["refused"]]))]
    for fault in names:
        for percent in (100, 10):
            some = [
                one["refused"]
                for one in found["by_fault"]
                if (one["fault"], one["percent_of_steps"]) == (fault, percent)
            ]
            if some:
                rows.append((fault, f"{percent} %", _refused(some)))
    table(("fault", "of the steps", "groups refused"), rows, 0)


def _refused(some: Sequence[dict[str, Any]]) -> str:
    total = rate(sum(one["hits"] for one in some), sum(one["of"] for one in some))
    return (
        f"{total['hits']} of {total['of']}: {total['share']:.1%} "
        f"({total['low']:.1%} to {total['high']:.1%})"
    )
