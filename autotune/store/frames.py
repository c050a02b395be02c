"""A study's trials as one table: a pandas DataFrame, and the CSV or Parquet file of it.

``docs/reference/trials.md`` describes the columns.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

PARAM = "param."
"""What the name of a parameter's column starts with."""
COLUMNS = {
    "study": "string",
    "kind": "string",
    "search": "Int64",
    "run": "Int64",
    "workload": "string",
    "workload_key": "string",
    "phase": "string",
    "sequence": "Int64",
    "created_at": "datetime64[us, UTC]",
    "candidate": "string",
    "outcome": "string",
    "basis": "string",
    "value_us": "Float64",
    "samples_us": "string",
    "seconds": "Float64",
    "message": "string",
    "details": "string",
}
"""The columns that every study has, in order, with their pandas types."""
SUFFIXES = (".csv", ".parquet")


def trials_frame(store: Store, study: str) -> pd.DataFrame:
    """Read the trials of a study into a table, one row each, in the order of their storing.

    Args:
        store: an open database.
        study: the name of the study.

    Returns:
        The columns of :data:`COLUMNS`, then one ``param.NAME`` for each parameter that a candidate
        has. Times are µs per call (moe) or µs per output token (spec); ``seconds`` is wall time.

    Raises:
        BadInputError: there is no such study.
    """
    import pandas as pd  # noqa: PLC0415 - takes half a second, and few commands need it

    detail = store.get_study(study)
    labels = {(w.search_id, w.key): w.label for w in detail.workloads}
    rows, given = [], []
    for search in detail.searches:
        for dated in store.dated_trials(search):
            trial, measurement = dated.trial, dated.trial.measurement
            given.append(trial.candidate.params)
            rows.append(
                {
                    "study": study,
                    "kind": detail.study.kind,
                    "search": search.id,
                    "run": dated.run_id,
                    "workload": labels[search.id, trial.workload_key],
                    "workload_key": trial.workload_key,
                    "phase": trial.phase.value,
                    "sequence": trial.sequence,
                    "created_at": dated.created_at,
                    "candidate": _json(trial.candidate.params),
                    "outcome": measurement.outcome.value,
                    "basis": measurement.basis.value,
                    "value_us": measurement.value,
                    "samples_us": _json(measurement.samples),
                    "seconds": measurement.seconds,
                    "message": measurement.message,
                    "details": _json(measurement.details),
                }
            )
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    names = dict.fromkeys(name for params in given for name in params)
    found = {PARAM + name: _column([params.get(name) for params in given]) for name in names}
    return pd.concat([frame, pd.DataFrame(found, index=frame.index)], axis=1)


def _column(values: Sequence[Any]) -> pd.Series[Any]:
    """Make a column of one type: numbers stay numbers, a mixture becomes JSON texts."""
    import pandas as pd  # noqa: PLC0415

    kinds = {type(value) for value in values if value is not None}
    for kind, dtype in ((bool, "boolean"), (int, "Int64"), (float, "Float64"), (str, "string")):
        if kinds == {kind} and (
            kind is not int or all(v is None or -(2**63) <= v < 2**63 for v in values)
        ):
            return pd.Series(list(values), dtype=dtype)
    if kinds == {int, float}:
        return pd.Series(list(values), dtype="Float64")
    texts = [None if value is None else _json(value) for value in values]
    return pd.Series(texts, dtype="string")


def _json(value: Any) -> str:
    """Write what was recorded as JSON; infinities, which a server may report, as Python does."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def check_frame_file(path: Path) -> None:
    """Refuse a file that :func:`frame_file` cannot make.

    Raises:
        BadInputError: the name ends in neither ``.csv`` nor ``.parquet``.
        MissingEnvironmentError: Parquet, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInputError(f"--to {path}: name a file that ends in {' or '.join(SUFFIXES)}")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingEnvironmentError(
            f"--to {path}: Parquet needs pyarrow; install it with: pip install "
            "'autotune[parquet]', or name a .csv file"
        )


def frame_file(frame: pd.DataFrame, path: Path) -> bytes:
    """Return what a file of the table holds, in the format that the end of ``path`` names.

    Raises:
        BadInputError: the name ends in neither ``.csv`` nor ``.parquet``.
        MissingEnvironmentError: Parquet, and pyarrow is not installed.
    """
    check_frame_file(path)
    if path.suffix.lower() == ".parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, engine="pyarrow", index=False)
        return buffer.getvalue()
    # Quoted texts: a message of a compiler may hold a lone carriage return, which ends a bare row.
    text = frame.to_csv(
        index=False,
        quoting=csv.QUOTE_NONNUMERIC,
        lineterminator="\n",
        date_format="%Y-%m-%dT%H:%M:%S.%f%z",
    )
    return text.encode()
