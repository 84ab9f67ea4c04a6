// The PTX that kernels use beyond CUDA C++, and nothing else. Tests compile the kernels for the CPU against an
// emulation of these functions (tests/emulation/).
#pragma once

#if defined(GATEDOPS_EMULATED)
#include "emulated_gpu.h"
#else

#include <cuda_bf16.h>

#include <cstdint>

namespace gatedops::cuda {

// What cuTensorMapEncodeTiled fills.
struct alignas(128) TensorMap {
  unsigned char opaque[128];
};

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char gatedops_shared_memory[];
  return gatedops_shared_memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies `bytes` (0 to 16, a multiple of 4) and fills the rest of the 16 with zeros; not done before
// wait_for_copies.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes the group of this thread's copies so far.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all groups of this thread but the last `pending`.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8 x 16-byte matrices; lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_address)
               : "memory");
}

// counts (16 x 8) += gates on in both, of 16 rows a and 8 rows b of 256 gates.
__device__ __forceinline__ void count_overlaps(int32_t (&counts)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sm_90: barriers in shared memory that count arrivals and bytes, and bulk copies that report to them.

// Initialises a barrier for `arrivals`; before use, publish_barriers() and a block barrier.
__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase end only after `bytes` have been copied.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity.
__device__ __forceinline__ void wait_for_phase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\n"
      "bra WAIT;\n"
      "DONE:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Copies a box, first element (column, row), with the map's swizzle; what lies outside the map becomes zeros.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// A barrier among `threads` threads of the block; id 0 is __syncthreads.
__device__ __forceinline__ void wait_among(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GATEDOPS_HAS_WGMMA

template <int registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// Before the first wgmma after registers that it uses were written.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all groups but the last `pending`. counts are named so that no use of them moves before the wait.
template <int pending>
__device__ __forceinline__ void wait_for_products(int32_t (&counts)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    asm volatile("" : "+r"(counts[i])::"memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    asm volatile("" : "+r"(counts[i])::"memory");
  }
}

// counts (64 x 128, a warpgroup) += gates on in both, of 64 rows a and 128 rows b of 256 gates in shared memory.
__device__ __forceinline__ void count_overlaps(int32_t (&counts)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, 1;"
      : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3]), "+r"(counts[4]), "+r"(counts[5]),
        "+r"(counts[6]), "+r"(counts[7]), "+r"(counts[8]), "+r"(counts[9]), "+r"(counts[10]), "+r"(counts[11]),
        "+r"(counts[12]), "+r"(counts[13]), "+r"(counts[14]), "+r"(counts[15]), "+r"(counts[16]), "+r"(counts[17]),
        "+r"(counts[18]), "+r"(counts[19]), "+r"(counts[20]), "+r"(counts[21]), "+r"(counts[22]), "+r"(counts[23]),
        "+r"(counts[24]), "+r"(counts[25]), "+r"(counts[26]), "+r"(counts[27]), "+r"(counts[28]), "+r"(counts[29]),
        "+r"(counts[30]), "+r"(counts[31]), "+r"(counts[32]), "+r"(counts[33]), "+r"(counts[34]), "+r"(counts[35]),
        "+r"(counts[36]), "+r"(counts[37]), "+r"(counts[38]), "+r"(counts[39]), "+r"(counts[40]), "+r"(counts[41]),
        "+r"(counts[42]), "+r"(counts[43]), "+r"(counts[44]), "+r"(counts[45]), "+r"(counts[46]), "+r"(counts[47]),
        "+r"(counts[48]), "+r"(counts[49]), "+r"(counts[50]), "+r"(counts[51]), "+r"(counts[52]), "+r"(counts[53]),
        "+r"(counts[54]), "+r"(counts[55]), "+r"(counts[56]), "+r"(counts[57]), "+r"(counts[58]), "+r"(counts[59]),
        "+r"(counts[60]), "+r"(counts[61]), "+r"(counts[62]), "+r"(counts[63])
      : "l"(a), "l"(b));
}

#endif

}  // namespace gatedops::cuda

#endif
