// GATEDOPS_KERNEL(f) turns a C++ function f into what m.impl() takes.
//
// TORCH_BOX passes every argument as 64 bits and copies sizeof(T) of them, so that a parameter of type float or int
// compiles and reads garbage. Therefore the types that a schema can really deliver are listed here.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace gatedops {

template <typename T, typename... Listed>
inline constexpr bool is_one_of = (std::is_same_v<T, Listed> || ...);

template <typename T>
struct SchemaType : std::bool_constant<is_one_of<
                        T, int64_t, double, bool, std::string, torch::stable::Tensor, torch::stable::Device,
                        torch::headeronly::ScalarType>> {};

template <typename T>
struct SchemaType<std::vector<T>> : std::bool_constant<is_one_of<T, int64_t, double, torch::stable::Tensor>> {};

template <typename T>
struct SchemaType<std::optional<T>> : SchemaType<T> {};

template <typename T>
struct ReturnType : std::bool_constant<std::is_void_v<T> || SchemaType<T>::value> {};

template <typename... T>
struct ReturnType<std::tuple<T...>> : std::conjunction<SchemaType<T>...> {};

template <typename Function, Function* function>
struct Checked;

template <typename Return, typename... Parameters, Return (*function)(Parameters...)>
struct Checked<Return(Parameters...), function> {
  static_assert(
      (SchemaType<std::decay_t<Parameters>>::value && ...),
      "a kernel parameter has a type that arrives as garbage: use int64_t for int, double for float");
  static_assert(
      ReturnType<Return>::value,
      "a kernel returns a type that arrives as garbage: use int64_t for int, double for float");

  static constexpr auto boxed = TORCH_BOX(function);
};

}  // namespace gatedops

#define GATEDOPS_KERNEL(f) (::gatedops::Checked<std::remove_pointer_t<decltype(&(f))>, &(f)>::boxed)
