"""
Infinity's own virtual environment.

Infinity needs older libraries than we do: NumPy 1, sentence-transformers 3 and, for the BetterTransformer that it uses unless told otherwise, optimum
1 with transformers before 4.49. torch is not installed again but linked from our environment: both then compute with the same build, and pip has no
reason to fetch one for CUDA.

In:  nothing      Out: the Python of an environment that has infinity-emb, made on first use and kept in build/
"""

import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

PACKAGES = ("infinity-emb[torch]==0.0.78", "optimum==1.27.0", "transformers==4.48.3")
TORCH_PARTS = ("torch", "torchgen", "functorch", "torch-*.dist-info", "torch-*.egg-info")
FOLDER = Path(__file__).parent.parent / "build" / "infinity"


class CannotInstall(Exception):
    """The environment cannot be made; the message is pip's last line."""


def infinity_python() -> Path:
    """Its Python, with everything installed.

    Raises:
        CannotInstall: this Python is too new for it, or nothing can be downloaded.
    """
    torch = distribution("torch")
    wanted = "\n".join([*PACKAGES, f"torch=={torch.version}", sys.version])
    python, done = FOLDER / "bin" / "python", FOLDER / "done"
    if done.exists() and done.read_text() == wanted:
        return python
    shutil.rmtree(FOLDER, ignore_errors=True)
    print("installing Infinity in an environment of its own, about 400 MB", file=sys.stderr, flush=True)
    _run(sys.executable, "-m", "venv", str(FOLDER))
    _link_torch(Path(str(torch.locate_file(""))))
    (FOLDER / "torch.txt").write_text(f"torch=={torch.version}\n")
    # Only wheels: what must be compiled first is a package that is too old for this Python.
    _run(str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--constraint", str(FOLDER / "torch.txt"), *PACKAGES)
    _run(str(python), "-c", "import infinity_emb")
    done.write_text(wanted)
    return python


def _link_torch(ours: Path) -> None:
    (theirs,) = FOLDER.glob("lib/python*/site-packages")
    for part in TORCH_PARTS:
        for entry in ours.glob(part):
            (theirs / entry.name).symlink_to(entry.resolve())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CannotInstall(said[-1] if said else f"{command[0]} ended with status {done.returncode}")
