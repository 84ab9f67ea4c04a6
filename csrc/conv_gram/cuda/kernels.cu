// The launchers of the conv_gram kernels.
#include "entries_kernel.h"
#include "launchers.h"
#include "maps_kernel.h"

namespace gatedops::cuda {
namespace {

constexpr int64_t kMaxBlocks = int64_t{1} << 30;

// For float, two blocks of 8 warps run on a multiprocessor, with 128 registers for each thread.
template <class T, int kRows, bool kSquare>
__global__ void __launch_bounds__(kWarp* kMaxWarps, sizeof(T) == 4 ? 2 : 1)
    stretch_kernel(const __grid_constant__ ConvBatch<T> batch, const __grid_constant__ Stretch stretch) {
  run_stretch<T, kRows, kSquare>(batch, stretch);
}

template <class T>
__global__ void __launch_bounds__(kEntryThreads)
    total_kernel(const __grid_constant__ ConvBatch<T> batch, const __grid_constant__ TotalStep step) {
  run_total(batch, step);
}

template <class T>
__global__ void __launch_bounds__(kEntryThreads)
    entries_kernel(const __grid_constant__ ConvBatch<T> batch, const __grid_constant__ EntryStep step) {
  run_entries(batch, step);
}

template <class T>
__global__ void __launch_bounds__(kEntryThreads)
    close_kernel(const __grid_constant__ ConvBatch<T> batch, const __grid_constant__ CloseStep step) {
  run_close(batch, step);
}

template <class T>
__global__ void __launch_bounds__(kEntryThreads)
    write_kernel(const __grid_constant__ ConvBatch<T> batch, int64_t place) {
  run_write(batch, place);
}

__global__ void __launch_bounds__(kEntryThreads) numbers_kernel(const __grid_constant__ Numbers numbers) {
  run_numbers(numbers);
}

template <class T, int kRows, bool kSquare>
int launch_rows(const ConvBatch<T>& batch, const Stretch& stretch, cudaStream_t stream) {
  const auto shared = static_cast<int>(stretch.shared_bytes(sizeof(T)));
  const cudaError_t error =
      cudaFuncSetAttribute(stretch_kernel<T, kRows, kSquare>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) {
    return error;
  }
  const auto blocks = static_cast<unsigned>(batch.pairs.count * stretch.parts());
  stretch_kernel<T, kRows, kSquare><<<blocks, stretch.warps * kWarp, shared, stream>>>(batch, stretch);
  return cudaGetLastError();
}

// Returns how many blocks have this many threads. The number of blocks is limited; each thread then takes several
// numbers in turn.
unsigned blocks_for_threads(int64_t threads) {
  return static_cast<unsigned>(std::min(kMaxBlocks, (threads + kEntryThreads - 1) / kEntryThreads));
}

}  // namespace

int launch_numbers(const Numbers& numbers, void* stream) {
  numbers_kernel<<<1, kEntryThreads, 0, static_cast<cudaStream_t>(stream)>>>(numbers);
  return cudaGetLastError();
}

template <class T>
int launch_stretch(const ConvBatch<T>& batch, const Stretch& stretch, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (!stretch.square()) {
    return launch_rows<T, kMapEdge, false>(batch, stretch, queue);
  }
  switch (stretch.rows()) {
    case 8:
      return launch_rows<T, 8, true>(batch, stretch, queue);
    case 16:
      return launch_rows<T, 16, true>(batch, stretch, queue);
    default:
      return launch_rows<T, 32, true>(batch, stretch, queue);
  }
}

template <class T>
int launch_total(const ConvBatch<T>& batch, const TotalStep& step, void* stream) {
  const auto blocks = static_cast<unsigned>(batch.pairs.count * step.parts);
  const int shared = kEntryThreads / kWarp * static_cast<int>(sizeof(double));
  total_kernel<<<blocks, kEntryThreads, shared, static_cast<cudaStream_t>(stream)>>>(batch, step);
  return cudaGetLastError();
}

template <class T>
int launch_entries(const ConvBatch<T>& batch, const EntryStep& step, void* stream) {
  const int64_t area = int64_t{step.out_y} * step.out_x;
  const unsigned blocks = blocks_for_threads(batch.pairs.count * area * area);
  entries_kernel<<<blocks, kEntryThreads, 0, static_cast<cudaStream_t>(stream)>>>(batch, step);
  return cudaGetLastError();
}

template <class T>
int launch_close(const ConvBatch<T>& batch, const CloseStep& step, void* stream) {
  const unsigned blocks = blocks_for_threads(batch.pairs.count);
  close_kernel<<<blocks, kEntryThreads, 0, static_cast<cudaStream_t>(stream)>>>(batch, step);
  return cudaGetLastError();
}

template <class T>
int launch_write(const ConvBatch<T>& batch, int64_t place, void* stream) {
  const unsigned blocks = blocks_for_threads(batch.pairs.count);
  write_kernel<<<blocks, kEntryThreads, 0, static_cast<cudaStream_t>(stream)>>>(batch, place);
  return cudaGetLastError();
}

#define GATEDOPS_LAUNCHERS(T)                                                \
  template int launch_stretch(const ConvBatch<T>&, const Stretch&, void*);   \
  template int launch_total(const ConvBatch<T>&, const TotalStep&, void*);   \
  template int launch_entries(const ConvBatch<T>&, const EntryStep&, void*); \
  template int launch_close(const ConvBatch<T>&, const CloseStep&, void*);   \
  template int launch_write(const ConvBatch<T>&, int64_t, void*);
GATEDOPS_LAUNCHERS(float)
GATEDOPS_LAUNCHERS(double)

}  // namespace gatedops::cuda
