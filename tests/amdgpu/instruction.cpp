// The grammar of llvm-objdump's AMDGPU listings, as far as our kernels' code needs it.
#include "tests/amdgpu/instruction.hpp"

#include <fmt/format.h>

#include <cctype>
#include <cstdlib>
#include <map>
#include <sstream>
#include <stdexcept>

namespace q4::amdgpu {
namespace {

constexpr int kVcc = 106, kM0 = 124, kExec = 126;

[[noreturn]] void fail(const std::string& what, const std::string& line) {
  throw std::runtime_error(fmt::format("amdgpu: {} in '{}'", what, line));
}

std::string trim(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  std::size_t from = 0;
  while (from < text.size() && std::isspace(static_cast<unsigned char>(text[from]))) ++from;
  return text.substr(from);
}

/// Strips a wrapper such as |...| or sext(...).
bool unwrap(std::string& text, const std::string& open, char close) {
  if (!text.starts_with(open) || text.back() != close) return false;
  text = text.substr(open.size(), text.size() - open.size() - 1);
  return true;
}

Operand parse_operand(std::string text, const std::string& line) {
  using Kind = Operand::Kind;
  static const std::map<std::string, Operand> named = [] {
    std::map<std::string, Operand> names;
    const auto scalar = [&](const char* name, int index, int count) {
      names[name] = {Kind::kScalar, false, false, false, index, count, 0, false, 0};
    };
    scalar("vcc", kVcc, 2), scalar("vcc_lo", kVcc, 1), scalar("vcc_hi", kVcc + 1, 1), scalar("m0", kM0, 1);
    scalar("exec", kExec, 2), scalar("exec_lo", kExec, 1), scalar("exec_hi", kExec + 1, 1);
    names["off"] = {}, names["null"] = {Kind::kNull, false, false, false, 0, 2, 0, false, 0};
    return names;
  }();
  Operand operand;
  const bool minus = text.size() > 1 && text[0] == '-' && !std::isdigit(static_cast<unsigned char>(text[1]));
  if (minus) operand.negate = true, text.erase(0, 1);
  operand.absolute = unwrap(text, "|", '|');
  operand.sign_extend = unwrap(text, "sext(", ')');
  if (const auto at = named.find(text); at != named.end()) {
    Operand found = at->second;
    found.negate = operand.negate, found.absolute = operand.absolute;
    return found;
  }
  const auto is_register = text.size() > 1 && (text[0] == 's' || text[0] == 'v' || text[0] == 'a') &&
                           (text[1] == '[' || std::isdigit(static_cast<unsigned char>(text[1])));
  if (is_register) {
    operand.kind = text[0] == 's' ? Kind::kScalar : text[0] == 'v' ? Kind::kVector : Kind::kAccumulator;
    int last = 0;
    if (text[1] == '[') {
      if (std::sscanf(text.c_str() + 1, "[%d:%d]", &operand.index, &last) == 2)
        operand.count = last - operand.index + 1;
    } else {
      operand.index = std::atoi(text.c_str() + 1);
    }
    return operand;
  }
  char* end = nullptr;
  const bool real = text.find('.') != text.npos && !text.starts_with("0x");
  if (real) {
    operand.kind = Kind::kReal, operand.real = std::strtod(text.c_str(), &end);
  } else {
    const long long value = std::strtoll(text.c_str(), &end, 0);
    operand.kind = Kind::kInteger, operand.bits = static_cast<std::uint32_t>(value), operand.wide_negative = value < 0;
  }
  if (text.empty() || *end != '\0') fail("operand '" + text + "'", line);
  return operand;
}

Part parse_part(const std::string& name, const std::string& line) {
  static const std::map<std::string, Part> parts = {{"DWORD", {0, 32}}, {"WORD_0", {0, 16}}, {"WORD_1", {16, 16}},
                                                    {"BYTE_0", {0, 8}}, {"BYTE_1", {8, 8}},  {"BYTE_2", {16, 8}},
                                                    {"BYTE_3", {24, 8}}};
  const auto at = parts.find(name);
  if (at == parts.end()) fail("SDWA part " + name, line);
  return at->second;
}

/// "[1,0,1]": bit i is element i.
unsigned parse_bits(const std::string& list) {
  unsigned bits = 0;
  for (std::size_t i = 1, element = 0; i < list.size(); i += 2, ++element)
    if (list[i] == '1') bits |= 1u << element;
  return bits;
}

void parse_modifier(Instruction& i, const std::string& word) {
  const auto colon = word.find(':');
  const std::string name = word.substr(0, colon), value = colon == word.npos ? "" : word.substr(colon + 1);
  if (name == "offset")
    i.offset = std::atoi(value.c_str());
  else if (name == "offset0")
    i.offset0 = std::atoi(value.c_str());
  else if (name == "offset1")
    i.offset1 = std::atoi(value.c_str());
  else if (name == "op_sel")
    i.op_sel = parse_bits(value);
  else if (name == "op_sel_hi")
    i.op_sel_hi = parse_bits(value), i.has_op_sel_hi = true;
  else if (name == "neg_lo")
    i.neg_lo = parse_bits(value);
  else if (name == "neg_hi")
    i.neg_hi = parse_bits(value);
  else if (name == "src0_sel")
    i.source[0] = parse_part(value, i.text);
  else if (name == "src1_sel")
    i.source[1] = parse_part(value, i.text);
  else if (name == "dst_sel")
    i.destination = parse_part(value, i.text);
  else if (word != "dst_unused:UNUSED_PAD" && word != "glc" && word != "slc" && word != "dlc" && word != "nt" &&
           word != "sc0" && word != "sc1")
    fail("modifier " + word, i.text);
}

/// RDNA 3 renamed what gfx9 and gfx10 call otherwise.
std::string gfx9_name(std::string name) {
  static const std::map<std::string, std::string> whole = {{"v_add_nc_u32", "v_add_u32"},
                                                           {"v_sub_nc_u32", "v_sub_u32"},
                                                           {"v_subrev_nc_u32", "v_subrev_u32"},
                                                           {"v_add_nc_u16", "v_add_u16"},
                                                           {"v_sub_nc_u16", "v_sub_u16"},
                                                           {"v_add_co_ci_u32", "v_addc_co_u32"},
                                                           {"v_sub_co_ci_u32", "v_subb_co_u32"},
                                                           {"v_subrev_co_ci_u32", "v_subbrev_co_u32"},
                                                           {"s_and_not1_b32", "s_andn2_b32"},
                                                           {"s_and_not1_b64", "s_andn2_b64"},
                                                           {"s_or_not1_b32", "s_orn2_b32"},
                                                           {"s_or_not1_b64", "s_orn2_b64"},
                                                           {"s_and_not1_saveexec_b32", "s_andn2_saveexec_b32"},
                                                           {"v_accvgpr_read_b32", "v_mov_b32"},
                                                           {"v_accvgpr_write_b32", "v_mov_b32"},
                                                           {"v_mfma_f32_16x16x16f16", "v_mfma_f32_16x16x16_f16"},
                                                           {"v_mfma_f32_16x16x16bf16_1k", "v_mfma_f32_16x16x16_bf16"}};
  static const std::pair<std::string, std::string> memory[] = {{"ds_load_2addr_stride64", "ds_read2st64"},
                                                               {"ds_store_2addr_stride64", "ds_write2st64"},
                                                               {"ds_load_2addr", "ds_read2"},
                                                               {"ds_store_2addr", "ds_write2"},
                                                               {"ds_load", "ds_read"},
                                                               {"ds_store", "ds_write"}};
  static const std::pair<std::string, std::string> widths[] = {
      {"_b32", "_dword"},  {"_b64", "_dwordx2"}, {"_b96", "_dwordx3"}, {"_b128", "_dwordx4"}, {"_b256", "_dwordx8"},
      {"_u16", "_ushort"}, {"_u8", "_ubyte"},    {"_b16", "_short"},   {"_b8", "_byte"}};
  if (const auto at = whole.find(name); at != whole.end()) return at->second;
  for (const auto& [now, before] : memory)
    if (name.starts_with(now + "_")) return before + name.substr(now.size());
  if (name.starts_with("global_") || name.starts_with("s_load_"))
    for (const auto& [now, before] : widths)
      if (name.ends_with(now)) return name.substr(0, name.size() - now.size()) + before;
  return name;
}

}  // namespace

Instruction parse_instruction(const std::string& line, bool rdna) {
  Instruction i;
  i.text = line, i.rdna = rdna;
  const auto space = std::min(line.find(' '), line.size());
  i.name = line.substr(0, space);
  for (const std::string ending : {"_e32", "_e64", "_sdwa"})
    if (i.name.ends_with(ending)) {
      i.sdwa = ending == "_sdwa";
      i.name.resize(i.name.size() - ending.size());
    }
  if (i.name.starts_with("v_dual_")) i.name = "v_" + i.name.substr(7);
  i.name = gfx9_name(i.name);
  static const char* const unread[] = {
      "s_waitcnt", "s_nop", "s_delay_alu", "s_clause", "s_sendmsg", "s_inst_prefetch", "s_set_inst_prefetch_distance"};
  for (const char* name : unread)
    if (i.name.starts_with(name)) return i;
  // Commas divide operands outside brackets; after an operand, words are modifiers.
  std::vector<std::string> fields(1);
  int depth = 0;
  for (const char c : line.substr(space)) {
    depth += (c == '[' || c == '(') - (c == ']' || c == ')');
    if (c == ',' && depth == 0)
      fields.emplace_back();
    else
      fields.back() += c;
  }
  for (const auto& field : fields) {
    std::istringstream words(trim(field));
    bool first = true;
    for (std::string word; words >> word; first = false) {
      const bool modifier = !first || (word.find(':') != word.npos && word.find('[') > word.find(':'));
      if (modifier)
        parse_modifier(i, word);
      else
        i.operands.push_back(parse_operand(word, line));
    }
  }
  return i;
}

std::vector<Instruction> parse_listing(const std::string& listing, const std::string& entry, bool rdna) {
  std::vector<Instruction> code;
  std::istringstream lines(listing);
  std::uint64_t start = 0;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.ends_with(">:")) {
      inside = line.find("<" + entry + ">:") != line.npos;
      if (inside) start = std::strtoull(line.c_str(), nullptr, 16);
      continue;
    }
    const auto comment = line.find("//");
    if (!inside || line.empty() || line[0] != '\t' || comment == line.npos) continue;
    const std::string text = trim(line.substr(0, comment)), place = line.substr(comment + 2);
    if (text.starts_with("s_code_end")) continue;
    const auto both = text.find(" :: ");
    Instruction i = parse_instruction(text.substr(0, both), rdna);
    if (both != text.npos) i.second.push_back(parse_instruction(text.substr(both + 4), rdna));
    i.address = std::strtoull(place.c_str(), nullptr, 16);
    // " 000000001608: BE82000F 00000000 <q4_gemv+0x13c>"
    std::istringstream words(place.substr(place.find(':') + 1));
    i.next = i.address;
    for (std::string word; words >> word && word[0] != '<';) i.next += 4;
    if (const auto at = place.find('<'); at != place.npos) {
      const auto plus = place.find("+0x", at);
      i.target = start + (plus == place.npos ? 0 : std::strtoull(place.c_str() + plus + 3, nullptr, 16));
    }
    code.push_back(std::move(i));
  }
  if (code.empty()) fail("no code of " + entry, "the listing");
  return code;
}

}  // namespace q4::amdgpu
