#!/usr/bin/env bash
# Builds gatedops._C and _C_cuda for the Python and the torch of a GPU machine, on a machine that needs no GPU.
#
#     scripts/gpu_prepare.sh [--python PROGRAM] [--version 3.12] [--torch 2.11.0] [--arch "9.0a"]
#
# The libraries go to gatedops/, beside those of other Pythons, whose names have another tag. A stamp says what they
# were built from. Without --python, the script makes an environment with that Python and torch in build/, for which pip
# downloads gigabytes; the next call uses it again. The script prints what to copy to the GPU machine beside the
# sources, and what to run there. MAX_JOBS is respected.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

fail() {
  echo "gpu_prepare.sh: $1" >&2
  exit 1
}

program='' version=3.12 torch=2.11.0 arch=9.0a
while (($#)); do
  [[ $1 != --help ]] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit 0; }
  (($# >= 2)) || fail "$1 needs a value"
  case $1 in
    --python) program=$2 ;;
    --version) version=$2 ;;
    --torch) torch=$2 ;;
    --arch) arch=$2 ;;
    *) fail "got $1, needs --python, --version, --torch or --arch" ;;
  esac
  shift 2
done

# Makes the environment with this Python and torch, unless it is already complete.
make_environment() {
  local folder=build/gpu-py${version//./}-torch${torch//./}
  program=$folder/bin/python
  [[ ! -e $folder/whole ]] || return 0
  "python$version" -c "" 2>/dev/null || fail "python$version does not run: install it, or name it with --python"
  echo "== installing torch $torch in $folder"
  rm -rf "$folder"
  "python$version" -m venv "$folder" || fail "python$version makes no environment: see the lines above"
  "$program" -m pip install --quiet "torch==$torch" numpy "setuptools>=77" wheel ninja ||
    fail "torch $torch cannot be installed in $folder: see the lines above"
  touch "$folder/whole"
}

# Fails with one sentence if the environment is not the one that is wanted.
require_environment() {
  local found
  found=$("$program" -c 'import sysconfig; print(sysconfig.get_python_version())' 2>/dev/null) || fail "$program does not run"
  [[ $found == "$version" ]] || fail "$program is Python $found, not $version"
  found=$("$program" -c 'import torch; print(torch.__version__, torch.version.cuda)' 2>/dev/null) || fail "$program has no torch"
  [[ ${found%% *} == "$torch" || ${found%% *} == "$torch+"* ]] || fail "$program has torch ${found%% *}, not $torch"
  [[ ${found##* } != None ]] || fail "torch ${found%% *} of $program is built without CUDA"
}

# Fails with one sentence, before anything is compiled, if nothing can be compiled for this list.
require_architectures() {
  local said
  said=$("$program" -c 'import sys, setup_cuda; setup_cuda.architectures(sys.argv[1])' "$arch" 2>&1) ||
    fail "--arch: ${said#TORCH_CUDA_ARCH_LIST: }"
}

# Prints the first error in a log, if there is one.
first_error() { # LOG
  grep -m 1 -iE '(error|fatal)( #[^:]*| *):|undefined reference|no space left' "$1"
}

# Builds in folders of its own, so that it uses no object from another torch.
build() {
  local folder=build/gpu-objects-py${version//./}-torch${torch//./} hash
  mkdir -p "$folder"
  hash=$("$program" scripts/gpu_build.py hash) || fail "the sources cannot be read"
  TORCH_CUDA_ARCH_LIST=$arch "$program" setup.py --quiet build_ext --inplace --build-temp "$folder" \
    --build-lib "$folder/lib" >"$folder/log" 2>&1 || {
    tail -n 40 "$folder/log" >&2
    fail "the build failed, all of it is in $folder/log: $(first_error "$folder/log" || echo "no line of it names an error")"
  }
  "$program" scripts/gpu_build.py stamp "$hash" || fail "the libraries have no stamp"
}

# Installs the modules that the tests import through torch's opcheck. A GPU machine without a network may lack them.
gather_modules() {
  mkdir -p "$modules"
  "$program" -m pip install --quiet --upgrade --no-deps --target "$modules" expecttest ||
    fail "expecttest cannot be installed in $modules: see the lines above"
}

nvcc --version >/dev/null 2>&1 || fail "nvcc does not run: install the CUDA toolkit"
[[ -n $program ]] || make_environment
require_environment
require_architectures
echo "== building for Python $version, torch $torch, $arch"
build
modules=build/gpu-modules
gather_modules

suffix=$("$program" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
carried=("gatedops/_C$suffix" "gatedops/_C_cuda$suffix" "gatedops/_C_cuda${suffix%.so}.stamp" "$modules")
echo "== copy to the GPU machine, beside the sources"
du -sb "${carried[@]}" | awk '{ printf "%9.1f MiB  %s\n", $1 / 2^20, $2; all += $1 } END { printf "%9.1f MiB in all\n", all / 2^20 }'
echo "== run there, in this folder"
echo "scripts/gpu_check.sh correct OUT_DIR"
echo "scripts/gpu_check.sh fast OUT_DIR"
