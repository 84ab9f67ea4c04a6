// std::invalid_argument reaches Python as ValueError. Needs nothing of torch.
#pragma once

#include <stdexcept>
#include <string>

namespace gatedops {

inline void require(bool condition, const std::string& message) {
  if (!condition) {
    throw std::invalid_argument(message);
  }
}

}  // namespace gatedops
