"""Tells the other scripts whether gatedops._C and _C_cuda are built for this Python, this torch and these sources.

    gpu_build.py hash           prints the hash of the sources
    gpu_build.py stamp [HASH]   writes beside the libraries what they were built from, unless the hash has changed
    gpu_build.py check          imports them on this machine's GPU

If only a build is missing, check prints "to build: REASON" last and exits with 0. If there is no GPU to build for, it
prints the reason and exits with 3. setup.py writes no stamp; check then says that the library is another one. With
GATEDOPS_DRY_GPU=1 it reports what is missing and goes on without a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gatedops"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
LIBRARIES = tuple(name + SUFFIX for name in ("_C", "_C_cuda"))
STAMP = PACKAGE / f"_C_cuda{SUFFIX.removesuffix('.so')}.stamp"
COMPILED = (".cpp", ".cu", ".h")
NO_GPU = 3  # The exit code of check.
COMPARED = ("Python", "torch", "sources")  # The stamp also names the commit, for people.


def hash_of_sources() -> str:
    """Returns a hash of the names and bytes of all compiled files, and of the files that say how to compile them."""
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in COMPILED]
    total = hashlib.sha256()
    for path in sorted([*files, ROOT / "setup.py", ROOT / "setup_cuda.py"]):
        total.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # Git is not installed.
        return "unknown"
    return done.stdout.strip() or "unknown"


def here() -> dict[str, str]:
    """Returns what a stamp would say about this interpreter and these sources."""
    import torch

    return {
        "Python": sysconfig.get_python_version(),
        "torch": str(torch.__version__),
        "sources": hash_of_sources(),
    }


def digests() -> dict[str, str]:
    """Returns a hash of the bytes of each library."""
    return {name: hashlib.sha256((PACKAGE / name).read_bytes()).hexdigest() for name in LIBRARIES}


def write_stamp(hash_at_start: str | None) -> int:
    now = here()
    why_not = missing_library()
    if hash_at_start not in (None, now["sources"]):
        why_not = "the sources changed while they were compiled: build again"
    if why_not is not None:
        print(why_not, file=sys.stderr)
        return 1
    # The module runs alone, since an import of gatedops would load the libraries, and here they need not load.
    write_text = runpy.run_path(str(ROOT / "gatedops" / "atomic_file.py"))["write_text"]
    write_text(STAMP, json.dumps(now | {"commit": commit()} | digests(), indent=1) + "\n")
    return 0


def read_stamp() -> dict[str, object] | None:
    """Returns the stamp, or None if it cannot be read."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def missing_library() -> str | None:
    for name in LIBRARIES:
        if not (PACKAGE / name).is_file():
            pattern = f"{name.removesuffix(SUFFIX)}.*so"
            others = ", ".join(sorted(path.name for path in PACKAGE.glob(pattern))) or "no other"
            return f"gatedops/{name} is not there ({others} is)"
    return None


def why_not_built(now: dict[str, str]) -> str | None:
    """Returns one sentence that says what is wrong with the libraries of this interpreter, or None if they fit."""
    missing = missing_library()
    if missing is not None:
        return missing
    if not STAMP.exists():
        return f"gatedops/{STAMP.name} is not there, so nobody knows what the libraries were built from"
    built = read_stamp()
    if built is None:
        return f"gatedops/{STAMP.name} cannot be read, so nobody knows what the libraries were built from"
    stale = [f"{name} {built.get(name)} (here: {now[name]})" for name in COMPARED if built.get(name) != now[name]]
    if stale:
        return f"the libraries were built from {', '.join(stale)}"
    other = [f"gatedops/{name}" for name, digest in digests().items() if built.get(name) != digest]
    return f"{' and '.join(other)} is not the one that was stamped" if other else None


def why_no_gpu() -> str | None:
    """Returns one sentence that says why torch cannot use a GPU here. If it can, prints the GPU's name and capability,
    and returns None."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install one that is built with it"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"{name} is older than sm_80, for which there are no kernels"
    print(f"{name}\ncompute capability {capability[0]}.{capability[1]}")
    return None


def check() -> int:
    dry = os.environ.get("GATEDOPS_DRY_GPU") == "1"
    now = here()
    print(", ".join(f"{name} {value}" for name, value in now.items()))
    no_gpu, not_built = why_no_gpu(), why_not_built(now)
    if dry:
        print(*filter(None, (no_gpu, not_built)), sep="\n")
    elif no_gpu is not None:
        print(no_gpu)
        return NO_GPU
    elif not_built is not None:
        print(f"to build: {not_built}")
        return 0
    sys.path.insert(0, str(ROOT))
    import gatedops
    from gatedops.backends.choice import backend_of

    print(f"gatedops {gatedops.__version__} loads, NVIDIA GPUs run Grams by {backend_of('cuda', 'gram')}")
    return 0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["hash"]:
            print(hash_of_sources())
            return 0
        case ["stamp"] | ["stamp", _]:
            return write_stamp(arguments[1] if len(arguments) == 2 else None)
        case ["check"]:
            return check()
    print("gpu_build.py: needs hash, stamp [HASH] or check", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
