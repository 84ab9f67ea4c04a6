"""Runs the scripts for GPU machines without a GPU: in a folder of their own, with a stand-in for Python that answers at
once, hangs or fails, as a test tells it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
KERNELS = ("sm90", "sm90x1", "sm80")

# The stand-in says what it is called with, then does what the variables tell it to.
PYTHON = r"""#!/bin/bash
echo "${GATEDOPS_CUDA-} $*" >>"$CALLS"
last=${!#}
if [[ -n ${HANG-} && "${GATEDOPS_CUDA-} $*" == *$HANG* ]]; then echo $BASHPID >"$CALLS.pid"; sleep 1000; fi
case "$*" in
  *"gpu_build.py check") [[ -e $CALLS.built ]] && unset READY
    printf '%b\n' "compute capability 9.0\n${READY-it loads}"
    [[ -z ${READY_SIGNAL-} ]] || kill -BUS $$
    exit "${READY_CODE-0}" ;;
  *"gpu_build.py stamp"*) exit "${STAMP_CODE-0}" ;;
  *"gpu_build.py hash") echo abcd ;;
  *setup_cuda.architectures*) [[ -z ${ARCHITECTURES-} ]] || { echo "$ARCHITECTURES" >&2; exit 1; } ;;
  *setup.py*) [[ -z ${BUILD_LOG-} ]] || { echo -e "$BUILD_LOG"; exit 1; }
    touch "$CALLS.built" gatedops/_C.cpython-312.so gatedops/_C_cuda.cpython-312.{so,stamp} ;;
  *gpu_single_tiles*) echo values >"$last"
    [[ " ${WRONG-} " != *" $GATEDOPS_CUDA "* ]] || { echo "1 of 11 products are wrong"; exit 1; } ;;
  *--collect-only*) echo "tests/t.py::a"; echo "tests/t.py::b[1 2]"; echo "2 tests collected in 0.1s" ;;
  *pytest*) echo "${PYTEST-===== 3 passed, 1 skipped in 0.10s =====}" ;;
  *"import xdist"*) exit "${NO_XDIST-0}" ;;
  "-m venv"*) mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *"pip install"*) exit "${PIP_CODE-0}" ;;
  *EXT_SUFFIX*) echo .cpython-312.so ;;
  *get_python_version*) echo "${VERSION-3.12}" ;;
  *"torch.version.cuda"*) echo "${TORCH-2.11.0+cu130 13.0}" ;;
  *) echo "$1 is done" ;;
esac
"""
FAILING_TAR = r"""#!/bin/bash
echo >>"$CALLS.tars"
written=$(wc -l <"$CALLS.tars")
if ((written > ${TARS-0} && written <= ${TARS-0} + ${FULL-1000})); then
  echo -e "gzip: stdout: No space left on device\ntar: Child returned status 1\ntar: Error is not recoverable" >&2
  exit 2
fi
exec /usr/bin/env -S PATH=/usr/bin:/bin tar "$@"
"""


class Tree:
    """The scripts in a folder of their own, with a PATH of the tools that a test puts there."""

    def __init__(self, folder: Path):
        self.folder, self.out, self.tools = folder, folder / "out", folder / "tools"
        for made in (folder / "scripts", folder / "gatedops", self.tools):
            made.mkdir()
        for script in SCRIPTS.glob("gpu_*"):
            shutil.copy(script, folder / "scripts")
        self.tool("python", PYTHON)
        for name in ("nvidia-smi", "ncu", "compute-sanitizer"):
            self.tool(name, "#!/bin/bash\necho it is done\n")

    def tool(self, name: str, text: str = "#!/bin/bash\n") -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "PYTHON": str(self.tools / "python"),
            "CALLS": str(self.folder / "calls"),
            "CUDA_HOME": "/nowhere",
            "TMPDIR": str(self.folder),
        } | variables

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.folder / "scripts" / script), *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)

    def check(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("gpu_check.sh", *(arguments or ("correct", str(self.out))), **variables)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def kept(self) -> set[str]:
        with tarfile.open(self.out / "logs.tgz") as archive:
            return {Path(name).name for name in archive.getnames()}


class Row(NamedTuple):
    """One step of the table."""

    result: str
    note: str


def table(printed: str) -> dict[str, Row]:
    rows = printed[printed.index("\nstep  ") :].splitlines()[2:-1]
    return {row[:14].strip(): Row(row[15:26].strip(), row[33:]) for row in rows}


def results(printed: str) -> set[str]:
    return {row.result for row in table(printed).values()}


def only_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]
