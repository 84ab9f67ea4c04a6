// What gate_overlap counts for a pair of rows, layer by layer, as its argument `measure` names it.
#pragma once

#include <string>

#include "core/require.h"

namespace gatedops {

// If `both` gates are on in both rows, kAgree counts w - |a| - |b| + 2 both and kDiffer |a| + |b| - 2 both.
enum class Measure { kBoth, kAgree, kDiffer };

inline Measure measure_of(const std::string& name) {
  require(name == "both" || name == "agree" || name == "differ", [&] {
    return "measure: got '" + name + "', needs 'both', 'agree' or 'differ'";
  });
  return name == "both" ? Measure::kBoth : name == "agree" ? Measure::kAgree : Measure::kDiffer;
}

}  // namespace gatedops
