// Checks that throw std::invalid_argument, which reaches Python as ValueError. This file does not depend on torch.
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

// The same for checks that every call makes: message() is called only if the condition fails.
template <class Message, class = std::enable_if_t<std::is_invocable_r_v<std::string, const Message&>>>
inline void require(bool condition, const Message& message) {
  if (!condition) {
    throw std::invalid_argument(message());
  }
}

}  // namespace gatedops
