#!/usr/bin/env bash
# Prints what kind of machine this is, for the log of scripts/gpu_check.sh: GPU, tools, versions, variables. It never
# fails.
absent=()
for tool in nvidia-smi nvcc g++ ncu compute-sanitizer; do
  command -v "$tool" >/dev/null || absent+=("$tool")
done
uname -srm
nproc
nvidia-smi 2>&1
nvcc --version 2>&1 | tail -n 2
g++ --version 2>&1 | head -n 1
"${PYTHON:-python3}" --version
env | grep -E 'ARCH_LIST|CUDA|CXX|GATEDOPS|OMP|PYTHON' | sort
nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null
((${#absent[@]} == 0)) || echo "absent: ${absent[*]}"
exit 0
