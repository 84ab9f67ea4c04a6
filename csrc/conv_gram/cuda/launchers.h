// The launchers of the kernels in kernels.cu, float and double, which ops.cpp calls. A launch is queued on `stream` (a
// cudaStream_t) of the current device. A launcher returns a cudaError_t.
#pragma once

#include "steps.h"

namespace gatedops::cuda {

int launch_numbers(const Numbers& numbers, void* stream);
template <class T>
int launch_stretch(const ConvBatch<T>& batch, const Stretch& stretch, void* stream);
template <class T>
int launch_total(const ConvBatch<T>& batch, const TotalStep& step, void* stream);
template <class T>
int launch_entries(const ConvBatch<T>& batch, const EntryStep& step, void* stream);
template <class T>
int launch_close(const ConvBatch<T>& batch, const CloseStep& step, void* stream);
template <class T>
int launch_write(const ConvBatch<T>& batch, int64_t place, void* stream);

}  // namespace gatedops::cuda
