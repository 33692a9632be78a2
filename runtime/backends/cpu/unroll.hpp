// Loops with compile-time indices, so that arrays of vectors live in registers.
#pragma once

#include <utility>

namespace q4::cpu {

template <int I>
struct Index {
  constexpr operator int() const { return I; }
};

template <int... I, class Body>
[[gnu::always_inline]] inline void unroll_sequence(std::integer_sequence<int, I...>, Body& body) {
  (body(Index<I>{}), ...);
}

/// body(Index<0>), body(Index<1>), ... body(Index<N - 1>). The body must be always_inline.
template <int N, class Body>
[[gnu::always_inline]] inline void unroll(Body body) {
  unroll_sequence(std::make_integer_sequence<int, N>{}, body);
}

}  // namespace q4::cpu
