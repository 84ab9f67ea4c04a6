#!/usr/bin/env bash
# Builds and imports gatedops with another Python and torch, and collects its GPU tests, in an environment that is
# removed afterwards.
#
#     scripts/check_torch.sh PYTHON TORCH        such as: scripts/check_torch.sh python3.12 2.11.0
#
# The torch must be built for CUDA, as pip's are on Linux; pip downloads gigabytes for it. nvcc must be on PATH. A GPU
# is not needed. Tracked files are copied as they are in the working tree, so that nothing here is built or changed.
set -euo pipefail
cd "$(dirname "$0")/.."
interpreter=${1:?needs a Python: scripts/check_torch.sh PYTHON TORCH}
torch=${2:?needs a version of torch: scripts/check_torch.sh PYTHON TORCH}

fail() {
  echo "check_torch.sh: $*" >&2
  exit 1
}
"$interpreter" -c "" 2>/dev/null || fail "$interpreter does not run: name another, as in make check-torch211 PYTHON312=/path/to/python3.12"
command -v nvcc >/dev/null || fail "nvcc is not found, and without it gatedops._C_cuda is not built: install the CUDA toolkit"

folder=$(mktemp -d "${TMPDIR:-/tmp}/gatedops-check.XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/tree"
git ls-files -z | xargs -0 cp --parents -t "$folder/tree"
"$interpreter" -m venv "$folder/env"
python=$folder/env/bin/python
cd "$folder/tree"

echo "== installing torch $torch and what the tests import ($folder)"
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet "torch==$torch" numpy "setuptools>=77" wheel ninja
echo "== building, installing"
"$python" -m pip install --quiet --no-build-isolation --editable ".[test]"

echo "== importing"
"$python" - "$torch" <<'EOF'
import sys
import torch, gatedops
from gatedops.backends import cuda_library

version = torch.__version__.split("+")[0]
assert version == sys.argv[1], f"torch is {version}"
assert cuda_library.library() is not None, "gatedops._C_cuda was not built"
kernels = cuda_library.kernels()
without = [n for n in kernels if not torch._C._dispatch_has_kernel_for_dispatch_key(f"gatedops_cuda::{n}", "CUDA")]
assert kernels and not without, f"the CUDA library registers no kernel for {without}"
counts = gatedops.gate_overlap(gatedops.GateBits.pack([torch.tensor([[1.0, -1.0], [1.0, 1.0]])]))
assert counts.tolist() == [[[1, 1], [1, 2]]], counts
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: {len(kernels)} ops have CUDA kernels")
EOF

echo "== collecting the tests that need a GPU"
"$python" -m pytest -m gpu --collect-only --quiet tests/gpu/test_gpu_*.py | tail -n 1
