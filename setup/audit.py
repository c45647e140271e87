"""
Known vulnerabilities of what constraints.txt pins, by pip-audit.

The file is the whole set, so nothing is resolved and no environment is built. The service that knows of vulnerabilities, OSV's unless
PIP_AUDIT_OSV_URL names another, may be out of reach: then this says so and fails nothing, because nothing was found. What is found always fails.

In:  constraints.txt      Out: a line for people; exit status 1 if a vulnerability is known
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
ANSWER_S = 10
"""Seconds for one answer of the service."""


def asked(pins: Path) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit reports of each pin, and else why it reports nothing."""
    options = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--vulnerability-service", "osv", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", *options, "--timeout", str(ANSWER_S), "--requirement", str(pins)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(run.stdout)["dependencies"], ""
    except json.JSONDecodeError:
        complaints = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        return [], complaints[-1].partition(": ")[0]


def main(pins: Path = PINS) -> int:
    packages, complaint = asked(pins)
    known = [(package, each) for package in packages for each in package.get("vulns", ())]
    for package, each in known:
        print(f"{package['name']} {package['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version'}", file=sys.stderr)
    if known:
        print(f"pip-audit: known vulnerabilities in {pins.name}: ask for newer versions in pyproject.toml, then make lock", file=sys.stderr)
        return 1
    answered = sum("skip_reason" not in package for package in packages)
    if answered == 0:
        print(f"pip-audit: the service that knows of vulnerabilities could not be asked, so {pins.name} is NOT audited ({complaint or 'no answers'})")
        return 0
    skipped = len(packages) - answered
    print(f"pip-audit: no known vulnerability in {answered} packages" + (f"; {skipped} could not be asked about" if skipped else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
