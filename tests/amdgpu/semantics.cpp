// Puts the table together and looks instructions up in it.
#include "tests/amdgpu/semantics.hpp"

namespace q4::amdgpu {

void resolve(Instruction& instruction) {
  static const Table table = [] {
    Table all;
    // Waiting and hints: memory arrives at once here. s_barrier and s_endpgm are the loop's (execute.cpp).
    for (const char* name :
         {"s_nop", "s_waitcnt", "s_waitcnt_vscnt", "s_waitcnt_depctr", "s_waitcnt_lgkmcnt", "s_delay_alu", "s_clause",
          "s_inst_prefetch", "s_set_inst_prefetch_distance", "buffer_gl0_inv", "buffer_gl1_inv", "buffer_wbinvl1",
          "s_sendmsg", "s_barrier", "s_endpgm", "s_sleep"})
      all[name] = [](Wave&, const Instruction&) {};
    add_scalar(all), add_integer(all), add_real(all), add_memory(all), add_matrix(all);
    return all;
  }();
  const auto at = table.find(instruction.name);
  if (at == table.end()) fail("unknown instruction " + instruction.name, instruction);
  instruction.execute = at->second;
  for (auto& second : instruction.second) resolve(second);
}

}  // namespace q4::amdgpu
