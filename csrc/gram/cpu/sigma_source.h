// Where the Sigma of a Gram comes from, by its arguments.
#pragma once

#include <memory>

#include "gram/args.h"
#include "problem.h"

namespace gatedops::cpu {

template <class T>
std::unique_ptr<SigmaSource<T>> sigma_source(const GramArgs& args) {
  if (!args.x) {
    return nullptr;
  }
  if (args.x->scalar_type() == ScalarType::Byte) {
    return std::make_unique<IntegerSigma<T>>(*args.x, args.right());
  }
  return std::make_unique<MatmulSigma<T>>(*args.x, args.right());
}

}  // namespace gatedops::cpu
