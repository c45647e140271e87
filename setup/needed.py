"""
Which of the packages that constraints.txt pins are needed to run, as setup/needed.txt lists them: what nv_embed, its sidecar, the demo and
`nv-embed eval` import, and what that needs in turn. The rest is for tests, checks and benchmarks.

In:  an environment with all of them      Out: their names, a line each
"""

from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("sidecar", "minilm", "eval", "tracing")
TOOLS = {"pip", "setuptools"}


def needed(root: str = "nv-embed", extras: tuple[str, ...] = EXTRAS) -> list[str]:
    """Names, in order."""
    found, seen, left = set(TOOLS), set(), [(root, extras)]
    while left:
        name, wanted = item = left.pop()
        if item in seen:
            continue
        seen.add(item)
        found.add(canonicalize_name(name))
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                left.append((requirement.name, tuple(sorted(requirement.extras))))
    return sorted(found - {root})


if __name__ == "__main__":
    print("\n".join(needed()))
