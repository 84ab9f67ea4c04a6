#!/usr/bin/env bash
# Compiles the tile kernels for NEON and those in plain C++ for 64-bit Arm, without torch, and compares both. On an Arm
# machine they run directly, elsewhere in an emulator. If a tool is missing, the script says so and skips the check.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $(uname -m) == aarch64 || $(uname -m) == arm64 ]]; then
  compiler=${CXX:-c++} run=()
else
  compiler=aarch64-linux-gnu-g++ run=(qemu-aarch64)
fi
for tool in "$compiler" "${run[@]}"; do
  if ! command -v "$tool" > /dev/null; then
    echo "check-neon skipped: $tool is not installed (Debian and Ubuntu: apt install g++-aarch64-linux-gnu qemu-user)"
    exit 0
  fi
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$compiler" -std=c++17 -O3 -ffp-contract=off -Wall -Wextra -Werror -static -Icsrc -o "$folder/check" \
  tests/cross/check_neon.cpp csrc/gram/cpu/neon.cpp csrc/gram/cpu/serial.cpp csrc/core/cpu/isa.cpp
"${run[@]}" "$folder/check"
