// An epilogue as a kernel's Problem has it, and as the text of tactics and tuning records.
#pragma once

#include <q4/matmul.hpp>
#include <string>
#include <string_view>

#include "kernels/epilogue.h"

namespace q4::choose {

constexpr bool is_gated(Activation a) { return a >= Activation::kSiluMul; }
/// Problem::activation.
constexpr int kind_of(Activation a) {
  return a == Activation::kNone ? kNoActivation : (static_cast<int>(a) - 1) % kRelu2 + 1;
}
static_assert(kind_of(Activation::kSilu) == kSilu && kind_of(Activation::kGeluTanh) == kGeluTanh &&
              kind_of(Activation::kGelu) == kGeluErf && kind_of(Activation::kRelu2) == kRelu2 &&
              kind_of(Activation::kSiluMul) == kSilu && kind_of(Activation::kRelu2Mul) == kRelu2);

constexpr bool is_plain(const Epilogue& e) { return e == Epilogue{}; }
/// "", "silu_mul", "residual", "lora+silu_mul+residual".
std::string to_text(const Epilogue& epilogue);
/// Takes such a part ("silu_mul") into `epilogue`; false: there is none of that name, or one came before it.
bool add_part(Epilogue& epilogue, std::string_view part);

}  // namespace q4::choose
