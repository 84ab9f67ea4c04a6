// GATEDOPS_HOST_DEVICE marks index arithmetic that kernels use and tests run on the CPU.
#pragma once

#if defined(__CUDACC__)
#define GATEDOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GATEDOPS_HOST_DEVICE inline
#endif
