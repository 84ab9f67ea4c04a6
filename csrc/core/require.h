// std::invalid_argument reaches Python as ValueError. Needs nothing of torch.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

namespace gatedops {

inline void require(bool condition, const std::string& message) {
  if (!condition) {
    throw std::invalid_argument(message);
  }
}

// The same for checks of every call: message() is put together only where the condition fails.
template <class Message, class = std::enable_if_t<std::is_invocable_r_v<std::string, const Message&>>>
inline void require(bool condition, const Message& message) {
  if (!condition) {
    throw std::invalid_argument(message());
  }
}

}  // namespace gatedops
