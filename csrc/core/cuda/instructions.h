// The PTX that kernels use beyond CUDA C++, and nothing else. Tests compile the kernels for the CPU against an
// emulation of these functions (tests/cuda/emulation/).
//
// The products of the tensor cores, which bound the Gram kernels. A multiply-add, or an AND with its count, is two
// operations. The rates are for all multiprocessors of an H200; benchmarks/_gram/gpu_limits.py has their sources.
// Latencies are not measured here.
//
// | instruction                 | operations | operations per second             | used for                       |
// |-----------------------------|------------|-----------------------------------|--------------------------------|
// | mma.sync  m16n8k256 b1      |     65,536 | about 9e15                        | gates, sm_80 kernel            |
// | wgmma     m64n128k256 b1    |  4,194,304 | 12.5e15                           | gates, sm_90 kernel            |
// | mma.sync  m16n8k32 u8       |      8,192 | not measured here                 | Sigma of bytes, sm_80 kernel   |
// | wgmma     m64n128k32 u8     |    524,288 | 1.98e15, the data sheet's int8    | Sigma of bytes, sm_90 kernel   |
// | wgmma     m64n128k8 tf32    |    131,072 | 0.49e15, the data sheet's TF32    | Sigma of floats, sm_90 kernel  |
#pragma once

#if defined(GATEDOPS_EMULATED)
#include "emulated_gpu.h"
#else

#include <cuda_bf16.h>

#include <cstdint>

namespace gatedops::cuda {

// The descriptor that cuTensorMapEncodeTiled fills in.
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

// Neighbouring values that one instruction reads from shared memory (16 bytes) or writes to global memory (16 or 8
// bytes). Their address is a multiple of their size. The accesses are in PTX, because in kernels of this size the
// compiler splits such a copy.
template <class Value, int kCount>
struct Together {
  Value value[kCount];
};

template <class Value, int kCount>
__device__ __forceinline__ void load_together(Together<Value, kCount>& to, const Value* from) {
  static_assert(sizeof(to) == 16);
  uint32_t words[4];
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(from))
               : "memory");
  memcpy(&to, words, sizeof(to));
}
template <class Value, int kCount>
__device__ __forceinline__ void store_together(Value* to, const Together<Value, kCount>& from) {
  uint32_t words[sizeof(from) / 4];
  memcpy(words, &from, sizeof(from));
  const auto place = __cvta_generic_to_global(to);
  if constexpr (sizeof(from) == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
  } else {
    static_assert(sizeof(from) == 8);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(place), "r"(words[0]), "r"(words[1]) : "memory");
  }
}

// Copies `bytes` bytes (0 to 16, a multiple of 4) and fills the rest of the 16 with zeros. The copy is complete only
// after wait_for_copies.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes the group of the copies that this thread has started.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all groups of this thread except the last `pending`.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Loads four matrices of 8 rows of 16 bytes. Lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_address)
               : "memory");
}

// Adds to counts (16 x 8), for 16 rows a and 8 rows b of 256 gates, how many gates are on in both rows.
__device__ __forceinline__ void count_overlaps(int32_t (&counts)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Adds to sums (16 x 8) the inner products of 16 rows a and 8 rows b of 32 bytes.
__device__ __forceinline__ void multiply_bytes(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Returns lane 0's value, so that the compiler knows that all lanes of the warp have the same.
__device__ __forceinline__ int uniform(int value) {
  return __shfl_sync(0xffffffff, value, 0);
}

// All lanes of a warp call these functions together.
__device__ __forceinline__ void wait_in_warp() {
  __syncwarp();
}
__device__ __forceinline__ uint32_t vote(bool yes) {
  return __ballot_sync(0xffffffff, yes);
}
template <class Value>
__device__ __forceinline__ Value from_lane(Value value, int lane) {
  return __shfl_sync(0xffffffff, value, lane);
}
template <class Value>
__device__ __forceinline__ Value from_lane_before(Value value) {
  return __shfl_up_sync(0xffffffff, value, 1);
}

// Returns the first of the lanes in a vote, or -1 if no lane voted yes.
__device__ __forceinline__ int first_lane(uint32_t lanes) {
  return __ffs(static_cast<int>(lanes)) - 1;
}

// sm_90 has barriers in shared memory that count arrivals and bytes, and bulk copies that report to them.

// Initialises a barrier for `arrivals` arrivals. publish_barriers() and a barrier of the block must follow before the
// first use.
__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the barrier that has the same address in block `rank` of the cluster. This only tells that shared memory
// has been read. It does not order writes for other blocks: the scope of the cluster would cost a fence of the device.
__device__ __forceinline__ void arrive_at(uint32_t barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// All threads of all blocks of the cluster wait here for each other. Afterwards all of them see what was written to
// shared memory before.
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Arrives, and lets the phase end only after `bytes` bytes have been copied.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase that has this parity ends.
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

// Copies a box whose first element is (column, row), with the map's swizzle. Elements outside the map become zeros.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Copies a box to the same address in all blocks of `ranks` (one bit each), and reports to the barrier of each block.
__device__ __forceinline__ void copy_box_to(
    uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier, uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ranks)
      : "memory");
}

// Waits at barrier `id` for `threads` threads of the block. Barrier 0 is that of __syncthreads.
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

// Must come between the writes to the registers that a wgmma uses, and the first such wgmma.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all groups except the last `pending`. The sums are operands here, so that the compiler does not move a use
// of them before the wait.
template <int pending>
__device__ __forceinline__ void wait_for_products(int32_t (&sums)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    asm volatile("" : "+r"(sums[i])::"memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    asm volatile("" : "+r"(sums[i])::"memory");
  }
}
template <int pending>
__device__ __forceinline__ void wait_for_products(float (&sums)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    asm volatile("" : "+f"(sums[i])::"memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    asm volatile("" : "+f"(sums[i])::"memory");
  }
}

// The 64 registers that each thread of a warpgroup has of its accumulator, as operands of inline assembly.
#define GATEDOPS_FOUR(r, i) "+r"(r[i]), "+r"(r[i + 1]), "+r"(r[i + 2]), "+r"(r[i + 3])
#define GATEDOPS_SIXTEEN(r, i) \
  GATEDOPS_FOUR(r, i), GATEDOPS_FOUR(r, i + 4), GATEDOPS_FOUR(r, i + 8), GATEDOPS_FOUR(r, i + 12)
#define GATEDOPS_ACCUMULATOR(r) \
  GATEDOPS_SIXTEEN(r, 0), GATEDOPS_SIXTEEN(r, 16), GATEDOPS_SIXTEEN(r, 32), GATEDOPS_SIXTEEN(r, 48)
#define GATEDOPS_FLOATS(r, i) "+f"(r[i]), "+f"(r[i + 1]), "+f"(r[i + 2]), "+f"(r[i + 3])
#define GATEDOPS_SIXTEEN_FLOATS(r, i) \
  GATEDOPS_FLOATS(r, i), GATEDOPS_FLOATS(r, i + 4), GATEDOPS_FLOATS(r, i + 8), GATEDOPS_FLOATS(r, i + 12)
#define GATEDOPS_FLOAT_ACCUMULATOR(r)                                                            \
  GATEDOPS_SIXTEEN_FLOATS(r, 0), GATEDOPS_SIXTEEN_FLOATS(r, 16), GATEDOPS_SIXTEEN_FLOATS(r, 32), \
      GATEDOPS_SIXTEEN_FLOATS(r, 48)
#define GATEDOPS_WGMMA(what)                                                         \
  "wgmma.mma_async.sync.aligned." what                                               \
  " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "         \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, "

// Adds to counts (64 x 128, over a warpgroup) how many gates are on in both rows, for 64 rows a and 128 rows b of 256
// gates in shared memory.
__device__ __forceinline__ void count_overlaps(int32_t (&counts)[64], uint64_t a, uint64_t b) {
  asm volatile(GATEDOPS_WGMMA("m64n128k256.s32.b1.b1.and.popc") "1;" : GATEDOPS_ACCUMULATOR(counts) : "l"(a), "l"(b));
}

// Adds to sums (64 x 128, over a warpgroup) the inner products of 64 rows a and 128 rows b of 32 bytes in shared
// memory.
__device__ __forceinline__ void multiply_bytes(int32_t (&sums)[64], uint64_t a, uint64_t b) {
  asm volatile(GATEDOPS_WGMMA("m64n128k32.s32.u8.u8") "1;" : GATEDOPS_ACCUMULATOR(sums) : "l"(a), "l"(b));
}

// Sets sums (64 x 128, over a warpgroup) to the inner products of 64 rows a and 128 rows b of 8 floats in shared
// memory, or adds these products to sums. The sign, the exponent and the first 10 bits of the mantissa of a float
// count.
template <bool kAdd>
__device__ __forceinline__ void multiply_floats(float (&sums)[64], uint64_t a, uint64_t b) {
  asm volatile(GATEDOPS_WGMMA("m64n128k8.f32.tf32.tf32") "%66, 1, 1;"
               : GATEDOPS_FLOAT_ACCUMULATOR(sums)
               : "l"(a), "l"(b), "n"(kAdd ? 1 : 0));
}

#endif

}  // namespace gatedops::cuda

#endif
