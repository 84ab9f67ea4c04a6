#!/usr/bin/env bash
# Runs everything that needs an NVIDIA GPU: `correct` checks that the kernels are right, `fast` that they are fast.
#
#     scripts/gpu_check.sh [--dry | --list] correct|fast OUT_DIR
#
# correct takes at most 360 s, fast at most 330 s. The script uses the python3 on PATH (or PYTHON) with its torch and
# triton, the libraries that scripts/gpu_prepare.sh built or else nvcc, and no network. Every step has a limit and runs
# in a process of its own, so that a hang or an illegal access does not hide other results. A kernel whose single tiles
# are wrong is not run any further. The script always prints a table last. OUT_DIR/logs.tgz holds it with all logs; the
# archive is complete after every step.
#
# --dry runs the same commands with the CPU in the place of the GPU, to find their mistakes without a GPU.
# --list prints name, limit and command of every step. GPU_CHECK_ONLY is a pattern: only steps whose names match it run.
# GPU_CHECK_LIMIT sets the limit of the whole run, in seconds.
# The exit code is 0 if all went well, 1 if a step failed or was left out, and 2 if the arguments make no sense.
set -uo pipefail

usage() {
  echo "gpu_check.sh: $1; usage: scripts/gpu_check.sh [--dry | --list] correct|fast OUT_DIR" >&2
  exit 2
}

mode=real code=0
case ${1-} in --dry | --list) mode=${1#--} && shift ;; esac
[[ $# == 2 && -n $2 ]] || usage "needs what to check and a folder for the results"
check=$1 out=$2
case $check in
  correct) limit=360 ;;
  fast) limit=330 ;;
  *) usage "got '$check', needs correct or fast" ;;
esac
slowness=1
[[ $mode != dry ]] || { limit=1800 slowness=3; } # On the CPU, steps get limits that are this many times as long.
limit=${GPU_CHECK_LIMIT:-$limit} only=${GPU_CHECK_ONLY-} python=${PYTHON:-python3} cores=$(nproc)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Relative paths count from the folder of the caller, which the script leaves below.
[[ $out == /* ]] || out=$PWD/$out
[[ $python != */* || $python == /* ]] || python=$PWD/$python
[[ ${TMPDIR:-/} == /* ]] || export TMPDIR=$PWD/$TMPDIR
export PYTHON=$python
# shellcheck source=scripts/gpu_steps.sh
source "$here/gpu_steps.sh"
trap leave EXIT
trap interrupt TERM INT HUP

# These lines have all that a dry run does differently.
# shellcheck disable=SC2016
self_test=(bash -c '"${@:2}" >"$1"' self_test)
cuda=(env GATEDOPS_BACKEND=cuda) triton=(env GATEDOPS_BACKEND=triton) benchmark=("$python")
unset GATEDOPS_BACKEND GATEDOPS_CUDA GATEDOPS_DRY_GPU PYTEST_ADDOPTS
if [[ $mode == dry ]]; then
  export GATEDOPS_DRY_GPU=1
  cuda=(env) triton=(env)
  # A benchmark and the self-test read their arguments before they find no GPU; ending there is right.
  # shellcheck disable=SC2016
  self_test=(bash -c '"${@:2}" 2>&1 | tee "$1" | grep "torch sees no GPU"' self_test)
  # shellcheck disable=SC2016
  benchmark=(bash -c '"$@" 2>&1 | tee /dev/stderr | tail -n 1 | grep "needs an NVIDIA GPU"' without_a_gpu "$python")
fi
# GATEDOPS_CUDA chooses the kernel of the Gram: wgmma in clusters of two, wgmma without clusters, mma.sync.
kernels=(sm90 sm90x1 sm80)

# --- the beginning of both checks -------------------------------------------------------------------------------------

# Makes the folder for the results, and the one where the logs grow.
prepare_folders() {
  local said
  [[ $mode != list ]] || { work=LOGS && return; }
  said=$(LC_ALL=C mkdir -p "$out" 2>&1) || unkept="$out cannot be written to: $said"
  make_work
  [[ -n $unkept ]] || keep
  [[ -z $unkept ]] || halt "$unkept"
  [[ -z $stopped ]] || code=2
}

# Makes ${work} beside other temporary files, or in OUT_DIR if there is no room for them.
make_work() {
  local where
  for where in "${TMPDIR:-/tmp}" "$out"; do
    work=$(mktemp -d "$where/tmp.XXXXXX" 2>/dev/null) || continue
    made+=("$work")
    head -c 100000 /dev/zero 2>/dev/null >"$work/probe" || continue
    rm "$work/probe"
    [[ $where != "$out" ]] || use_work_for_all
    return
  done
  work=
  halt "${unkept:-neither ${TMPDIR:-/tmp} nor $out has room for the logs}"
}

use_work_for_all() {
  echo "gpu_check.sh: nothing can be written in ${TMPDIR:-/tmp}, so temporary files are in $out for now" >&2
  export TMPDIR=$work/tmp
  mkdir "$TMPDIR"
}

# Finds a GPU and libraries for it. Without them nothing else runs.
prepare_libraries() {
  step machine 20 bash "$here/gpu_machine.sh"
  step ready 90 "${cuda[@]}" "$python" scripts/gpu_build.py check || halt "$(why_not_loaded ready)"
  [[ $mode != real || -n $stopped ]] || choose_for_gpu "$(sed -n 's/^compute capability //p' "$work/ready.log")"
  [[ ${notes[ready]-} == "to build: "* ]] || return 0
  if ! command -v nvcc >/dev/null; then
    halt "${notes[ready]#to build: }, and nvcc, which could build them, is not installed"
  elif ! build_libraries; then
    halt "$(why_not_built)"
  fi
}

why_not_loaded() { # STEP
  if [[ ${results[$1]} == "failed 3" ]]; then
    echo "${notes[$1]}" # gpu_build.py gave the reason.
  else
    echo "the libraries cannot be loaded (${results[$1]}): ${notes[$1]}"
  fi
}

why_not_built() {
  if [[ -z ${results[built]-} ]]; then
    echo "the libraries cannot be built (${results[build]}): ${notes[build]}"
  elif went_well built; then
    echo "the libraries are built and do not fit: ${notes[built]#to build: }"
  else
    why_not_loaded built
  fi
}

choose_for_gpu() { # COMPUTE_CAPABILITY
  export TORCH_CUDA_ARCH_LIST=$1 # An inherited list may name GPUs for which nothing here compiles.
  [[ $1 == 9.0 ]] || kernels=(sm80)
}

build_libraries() {
  # shellcheck disable=SC2016 # The inner shell expands it.
  step build 170 bash -c '"$1" setup.py --quiet build_ext --inplace && "$1" scripts/gpu_build.py stamp' build "$python" &&
    step built 60 "${cuda[@]}" "$python" scripts/gpu_build.py check && [[ ${notes[built]-} != "to build: "* ]]
}

# Runs one tile of every kernel, and small products, and keeps their values.
single_tiles() {
  local kernel
  for kernel in "${kernels[@]}"; do
    start "tiles_$kernel" 60 "${cuda[@]}" CUDA_LAUNCH_BLOCKING=1 GATEDOPS_CUDA="$kernel" \
      "$python" scripts/gpu_single_tiles.py "$work/tiles_$kernel.pt"
  done
  finish
}

# only_when_right KERNEL blocks the steps that follow if the kernel's single tiles are wrong.
only_when_right() {
  blocked=
  went_well "tiles_$1" || blocked="the single tiles of $1 are not right"
}

# under TOOL OPTIONS... makes ${tool[@]} run a command under the tool. It blocks the steps that follow if the tool is
# not installed.
under() {
  tool=("$@")
  if [[ $mode == dry ]]; then
    tool=()
  elif [[ $mode == real && -z $blocked ]] && ! command -v "$1" >/dev/null; then
    blocked="$1 is not installed"
  fi
}

# choose_kernel makes ${chosen[@]} force the first kernel whose single tiles are right, ${right[0]}. ${any[@]} forces it
# only if a kernel is wrong. If all are wrong, choose_kernel blocks the steps that follow.
choose_kernel() {
  local kernel
  right=()
  for kernel in "${kernels[@]}"; do ! went_well "tiles_$kernel" || right+=("$kernel"); done
  chosen=(GATEDOPS_CUDA="${right[0]-}") any=() blocked=
  ((${#right[@]} == ${#kernels[@]})) || any=("${chosen[@]}")
  ((${#right[@]})) || blocked="no kernel's single tiles are right"
}

# --- correct ----------------------------------------------------------------------------------------------------------

# -v shows which tests ran before a crash. faulthandler_timeout shows where a test hangs, which xdist's workers do not.
pytest=("$python" -m pytest -v -m gpu -W default -p no:cacheprovider -p gpu_pytest --tb=short --timeout-method thread
  -o faulthandler_timeout=35)
gram_tests=(
  "tile single_tile"
  "lambda lambda or bfloat16 or scale"
  "sigma sigma"
  "matvec matvec"
  "rest not (single_tile or lambda or bfloat16 or scale or sigma or matvec)"
)
sweep=(benchmarks/gram.py --device cuda --only sweep --layers 10 --width 1024 --no-peers --no-plot)

# If xdist is installed, each group has one worker, which is replaced if a test breaks it or hangs.
gram_groups() {
  local kernel group replaced=()
  ! has_xdist || replaced=(-n 1 --max-worker-restart 20)
  for kernel in "${kernels[@]}"; do
    [[ $mode != dry || $kernel == "${kernels[0]}" ]] || continue # The CPU has one kernel.
    only_when_right "$kernel"
    for group in "${gram_tests[@]}"; do
      start "${kernel}_${group%% *}" 90 "${cuda[@]}" GATEDOPS_CUDA="$kernel" "${pytest[@]}" "${replaced[@]}" \
        --timeout 40 tests/gpu/test_gpu_gram_cuda.py -k "${group#* }"
    done
  done
  blocked=
}

memory_checks() {
  local kernel
  for kernel in "${kernels[@]}"; do
    only_when_right "$kernel"
    under compute-sanitizer --tool memcheck --error-exitcode 9
    start "memory_$kernel" 120 "${cuda[@]}" GATEDOPS_CUDA="$kernel" "${tool[@]}" \
      "$python" scripts/gpu_single_tiles.py
  done
  blocked=
  finish
}

# self NAME SECONDS FAMILIES... runs the users' self-test, for these families or for all, and keeps its verdicts.
self() {
  local families=("${@:3}")
  ((${#families[@]} == 0)) || families=(--families "${families[@]}")
  start "$1" "$2" "${self_test[@]}" "$work/$1.json" env GATEDOPS_CACHE="$work/$1.cache" \
    "$python" -m gatedops selftest --json --limit 60 "${families[@]}"
}

# Checks whether all kernels are right, all families at the same time. The speeds are then those of a busy GPU.
self_tests() {
  self self_gates 130 gates
  self self_gram 130 gram
  self self_conv 130 conv_gram
  self self_layers 130 gated_linear
  self self_pairs 130 gated_linear_pair
}

correct() {
  single_tiles
  split conv 100 $((cores < 4 ? cores : 4)) tests/gpu/test_gpu_conv_gram.py "${cuda[@]}" "${pytest[@]}" --timeout 60
  gram_groups
  finish
  split portable 110 $((cores < 8 ? cores : 8)) \
    "tests/gpu/test_gpu_gram.py tests/gpu/test_gpu_gated_linear.py tests/gpu/test_gpu_conv_gram.py" \
    env GATEDOPS_BACKEND=portable "${pytest[@]}" --timeout 60
  split triton 130 $((cores < 10 ? cores : 10)) "tests/gpu/test_gpu_gram.py tests/gpu/test_gpu_gated_linear.py" \
    "${triton[@]}" "${pytest[@]}" --timeout 100
  self_tests
  finish
  choose_kernel
  step number 50 "${cuda[@]}" "${chosen[@]}" "${benchmark[@]}" "${sweep[@]}" --n 16384 60000 --out "$work/number"
  memory_checks
}

# --- fast -------------------------------------------------------------------------------------------------------------

record_clocks() {
  if [[ $mode != real || -n $stopped ]]; then
    return
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi dmon -s pc -d 1 >"$work/clocks.log" 2>&1 &
    recorder=$!
  else
    result clocks "not run" - "nvidia-smi is not installed"
  fi
}

fast() {
  local kernel
  record_clocks
  single_tiles
  choose_kernel
  step grams 100 "${cuda[@]}" "${any[@]}" "${benchmark[@]}" benchmarks/gram.py --device cuda --quick --no-plot \
    --out "$work/grams"
  for kernel in "${kernels[@]}"; do
    only_when_right "$kernel"
    step "sweep_$kernel" 40 "${cuda[@]}" GATEDOPS_CUDA="$kernel" "${benchmark[@]}" "${sweep[@]}" --n 16384 60000 \
      --out "$work/$kernel"
  done
  choose_kernel
  kernel=${right[0]-}
  # The names are gram_sm90<Sm90Traits<float, 2>, ...>, gram_sm90<Sm90Traits<float, 1>, ...> and gram_sm80<...>.
  under ncu --clock-control none --set full --kernel-name "regex:gram_${kernel%x1}" --launch-skip 2 --launch-count 1 \
    --force-overwrite --export "$out/gram"
  step profile 60 "${cuda[@]}" "${chosen[@]}" "${tool[@]}" "${benchmark[@]}" "${sweep[@]}" --n 16384 \
    --out "$work/profiled"
  blocked=
  step layers 120 "${triton[@]}" "${benchmark[@]}" benchmarks/gated_linear.py --device cuda --quick --only layer pair \
    --no-compile --no-plot --out "$work/layers"
  step conv 50 "${cuda[@]}" "${benchmark[@]}" benchmarks/conv_npk.py --device cuda --quick --out "$work/conv"
  self self 150 # The GPU does nothing else now; the result is for scripts/record_proved.py.
  finish
}

cd "$here/.." || exit 2
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONPATH=$PWD:$here${PYTHONPATH:+:$PYTHONPATH}:$PWD/build/gpu-modules
export OMP_NUM_THREADS=$((cores < 8 ? 1 : cores / 8)) # Several processes share the cores.
prepare_folders
prepare_libraries
if [[ $check == correct ]]; then correct; else fast; fi
exit "$code"
