// A value, or why there is none: for what may fail in the ordinary course of things, where nothing is thrown.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace q4 {

/// The reason of a Result that has no value: `return Failure{"..."}`.
struct Failure {
  std::string reason;
};

template <class T>
class Result {
 public:
  Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}
  Result(Failure failure) : content_(std::in_place_index<1>, std::move(failure)) {}

  explicit operator bool() const { return content_.index() == 0; }
  const T& operator*() const& { return std::get<0>(content_); }
  T& operator*() & { return std::get<0>(content_); }
  T&& operator*() && { return std::get<0>(std::move(content_)); }
  const T* operator->() const { return &std::get<0>(content_); }
  T* operator->() { return &std::get<0>(content_); }
  /// Only of one without a value.
  const std::string& reason() const { return std::get<1>(content_).reason; }

 private:
  std::variant<T, Failure> content_;
};

/// Success, or why not: `return {}` is success.
template <>
class Result<void> {
 public:
  Result() = default;
  Result(Failure failure) : failure_(std::move(failure)) {}

  explicit operator bool() const { return !failure_; }
  /// Only of a failure.
  const std::string& reason() const { return failure_->reason; }

 private:
  std::optional<Failure> failure_;
};

}  // namespace q4
