#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in under nine minutes: builds, tests, checks memory, times.
#
#     scripts/gpu_check.sh OUT_DIR
#
# Uses the python3 on PATH with its torch and triton, and no network. Each step has a time limit and a log in OUT_DIR;
# a step that fails does not stop the others. Results of the benchmarks are JSON in OUT_DIR, a table of the steps is
# printed last. Exit code: 1 where a step failed.
set -uo pipefail

out=${1:?needs a folder for the results: scripts/gpu_check.sh OUT_DIR}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
export GATEDOPS_BACKEND=triton CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
started=$SECONDS
limit=540
failed=0
rows=()

# step NAME SECONDS COMMAND...: runs it within its limit and what is left of the whole.
step() {
  local name=$1 seconds=$2 begin=$SECONDS left=$((limit - (SECONDS - started))) status=0 verdict=ok
  shift 2
  if ((left < 10)); then
    rows+=("$(printf '%-12s %-10s %4s  %s' "$name" "no time" "-" "")")
    failed=1
    return 1
  fi
  ((seconds < left)) || seconds=$left
  echo "== $name (at most $seconds s)"
  timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1 || status=$?
  tail -n 4 "$out/$name.log"
  if ((status == 124 || status == 137)); then verdict="time out"; elif ((status != 0)); then verdict="failed $status"; fi
  ((status == 0)) || failed=1
  rows+=("$(printf '%-12s %-10s %4d  %s' "$name" "$verdict" $((SECONDS - begin)) "$(tail -n 1 "$out/$name.log" | cut -c1-90)")")
  return "$status"
}

quick_check() {
  "$python" - <<'EOF'
import torch, triton, gatedops
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda, "triton", triton.__version__)
x, w, b = (torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in ((300, 128), (257, 128), (257,)))
y, bits = gatedops.gated_linear(x, w, b, return_gates=True)
expected = torch.nn.functional.linear(x, w, b).relu()
print("largest difference to torch:", float((y - expected).abs().max()), "of", float(expected.max()))
assert torch.equal(bits.unpack()[0], y > 0)
EOF
}

# Warnings of another torch or triton than the locked ones are no failures here. Kernels compile on several cores.
tests=("$python" -m pytest -q -m gpu -W default -p no:cacheprovider)
parallel=()
"$python" -c "import xdist" 2>/dev/null && parallel=(-n 6)

# What memcheck watches: small shapes, one kernel of each kind.
small_shapes="test_whole_numbers_give_the_cpus_bits and float32 and highest and 70"
small_grams="single_tile_random or (as_good_as_torch and 300-170 and uint8 and 13) or (test_neighbors and 11-True)"

step build 240 env -u GATEDOPS_BACKEND "$python" setup.py --quiet build_ext --inplace
export -f quick_check
export python
step first 60 bash -c quick_check
step layers 200 "${tests[@]}" "${parallel[@]}" --timeout 190 tests/test_gpu_gated_linear.py
step grams 90 "${tests[@]}" "${parallel[@]}" --timeout 80 tests/test_gpu_gram.py
# Descriptors, swizzle and fragments of one tile before anything else of the CUDA kernels.
gram_backend=triton
if compgen -G "gatedops/_C_cuda*.so" >/dev/null; then
  step tile_cuda 40 env GATEDOPS_BACKEND=cuda "${tests[@]}" -x --timeout 35 tests/test_gpu_gram_cuda.py -k single_tile &&
    gram_backend=cuda
  step grams_cuda 60 env GATEDOPS_BACKEND=cuda "${tests[@]}" --timeout 55 tests/test_gpu_gram_cuda.py
  step grams_sm80 60 env GATEDOPS_BACKEND=cuda GATEDOPS_CUDA=sm80 "${tests[@]}" --timeout 55 \
    tests/test_gpu_gram_cuda.py
  step conv_gram 90 env GATEDOPS_BACKEND=cuda "${tests[@]}" --timeout 85 tests/test_gpu_conv_gram.py
fi
step timings 150 "$python" benchmarks/gated_linear.py --device cuda --quick --only layer pair --no-compile --no-plot \
  --out "$out"
if compgen -G "gatedops/_C_cuda*.so" >/dev/null; then
  step conv_times 60 env GATEDOPS_BACKEND=cuda "$python" benchmarks/conv_npk.py --device cuda --quick --out "$out"
fi
step gram_times 60 env GATEDOPS_BACKEND="$gram_backend" "$python" benchmarks/gram.py --device cuda --quick --no-plot \
  --out "$out"
if command -v compute-sanitizer >/dev/null; then
  step memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 9 "${tests[@]}" --timeout 55 \
    tests/test_gpu_gated_linear.py -k "$small_shapes"
  if [[ $gram_backend == cuda ]]; then
    for kernel in sm90 sm80; do
      for tool in memcheck racecheck; do
        step "${tool}_$kernel" 40 env GATEDOPS_BACKEND=cuda GATEDOPS_CUDA=$kernel compute-sanitizer --tool $tool \
          --error-exitcode 9 "${tests[@]}" --timeout 35 tests/test_gpu_gram_cuda.py -k "$small_grams"
      done
    done
  fi
else
  rows+=("$(printf '%-12s %-10s %4s  %s' memcheck absent - "compute-sanitizer is not installed")")
fi

echo
printf '%-12s %-10s %4s  %s\n' step result s "last line of its log"
printf '%s\n' "${rows[@]}"
echo "$((SECONDS - started)) s in all; logs and JSON: $out"
exit "$failed"
