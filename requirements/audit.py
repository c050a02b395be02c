"""Look the installed packages up in an advisory database, and say so where none can be reached.

    python -m requirements.audit .venv-audit/bin/pip-audit

Ends with exit status 0 if no advisory is known, 1 if one is, 3 if nothing was looked up: then
nothing is known of the packages, which is not the same as that they are sound.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from typing import Any

SERVICES = ("pypi", "osv")
FINE, FOUND, NOT_AUDITED = 0, 1, 3
_SECONDS = 300


def asked(program: str, service: str, place: str) -> tuple[list[dict[str, Any]] | None, str]:
    """Return what a service knows of the packages in a folder, or None and why not."""
    command = [program, "--path", place, "--vulnerability-service", service, "--format", "json"]
    try:
        ran = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "15"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
        found = json.loads(ran.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    except (ValueError, KeyError, TypeError):
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        return None, lines[-1][:200] if lines else "it said nothing"
    looked_up = [one for one in found if "vulns" in one]
    return (looked_up, "") if looked_up else (None, "it knows none of the packages")


def main() -> int:
    """Ask each service until one answers, and print what it knows."""
    place = sysconfig.get_path("purelib")
    reasons = []
    for service in SERVICES:
        found, why = asked(sys.argv[1], service, place)
        if found is None:
            reasons.append(f"{service}: {why}")
            continue
        for one in found:
            for advisory in one["vulns"]:
                fixed = ", ".join(advisory.get("fix_versions", [])) or "no version"
                print(f"{one['name']} {one['version']}: {advisory['id']}, mended in {fixed}")
        known = sum(bool(one["vulns"]) for one in found)
        print(f"{service}: {len(found)} packages looked up, advisories for {known}")
        return FOUND if known else FINE
    print(f"NOT AUDITED: no advisory database can be reached ({'; '.join(reasons)})")
    return NOT_AUDITED


if __name__ == "__main__":
    sys.exit(main())
