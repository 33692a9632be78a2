// Names epilogues.
#include "runtime/choose/epilogue.hpp"

#include <utility>

namespace q4::choose {
namespace {

constexpr std::string_view kResidual = "residual", kLora = "lora";

}  // namespace

std::string to_text(const Epilogue& epilogue) {
  std::string text(epilogue.lora ? kLora : std::string_view());
  if (epilogue.activation != Activation::kNone)
    text += (text.empty() ? "" : "+") + std::string(to_string(epilogue.activation));
  if (epilogue.residual) text += (text.empty() ? "" : "+") + std::string(kResidual);
  return text;
}

bool add_part(Epilogue& epilogue, std::string_view part) {
  if (epilogue.residual) return false;  // it comes last
  if (part == kResidual) return epilogue.residual = true;
  if (epilogue.activation != Activation::kNone) return false;
  if (part == kLora) return !std::exchange(epilogue.lora, true);
  for (int i = 1; i <= static_cast<int>(Activation::kRelu2Mul); ++i)
    if (part == to_string(static_cast<Activation>(i))) {
      epilogue.activation = static_cast<Activation>(i);
      return true;
    }
  return false;
}

}  // namespace q4::choose
