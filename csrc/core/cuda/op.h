// What an op on NVIDIA GPUs needs around its launches: the stream, the check of devices, the errors of the CUDA
// runtime.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "core/checks.h"

namespace gatedops::cuda {

using torch::stable::accelerator::DeviceGuard;

inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

inline void require_launched(int error, const char* kernel) {
  if (error != cudaSuccess) {
    const char* what = cudaGetErrorString(static_cast<cudaError_t>(error));
    throw std::runtime_error(std::string(kernel) + ": " + what);
  }
}

inline void require_device_of(const Tensor& words, const std::optional<Tensor>& t, const char* name) {
  require(!t || t->device() == words.device(), std::string(name) + ": needs to be on the device of words");
}

}  // namespace gatedops::cuda
