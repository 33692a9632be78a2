// What the calls of the C ABI share: the runtime with its handles, and the guard that turns exceptions into a status.
#pragma once

#include <q4/q4.h>

#include <new>
#include <q4/q4.hpp>
#include <string>

#include "runtime/base/check.hpp"
#include "runtime/base/handles.hpp"

namespace q4::capi {

/// Far apart for runtimes that live at the same time: no two have one address.
std::uint32_t first_generation(const void* owner);

}  // namespace q4::capi

struct q4_runtime {
  explicit q4_runtime(q4::RuntimeOptions options) : runtime(std::move(options)) {}
  q4::Runtime runtime;
  q4::HandleTable<q4::QuantizedMatrix> matrices{q4::capi::first_generation(&matrices)};
  q4::HandleTable<q4::MatmulPlan> plans{q4::capi::first_generation(&plans)};
  q4::HandleTable<q4::QuantizedExperts> experts{q4::capi::first_generation(&experts)};
  q4::HandleTable<q4::MoePlan> moe_plans{q4::capi::first_generation(&moe_plans)};
  q4::HandleTable<q4::GroupedPlan> grouped_plans{q4::capi::first_generation(&grouped_plans)};
  q4::HandleTable<q4::Checkpoint> checkpoints{q4::capi::first_generation(&checkpoints)};
  q4::HandleTable<q4::LoraAdapters> loras{q4::capi::first_generation(&loras)};
};

namespace q4::capi {

std::string& last_error();  ///< of this thread
q4_status report(ErrorCode code, const char* call, const char* text) noexcept;
[[noreturn]] void dead_handle(bool issued, const char* what, std::uint64_t id);

template <class Body>
q4_status guard(const char* call, Body&& body) noexcept {
  try {
    body();
    return Q4_OK;
  } catch (const Error& e) { return report(e.code(), call, e.what()); } catch (const std::bad_alloc&) {
    return report(ErrorCode::kOutOfMemory, call, "host memory is exhausted");
  } catch (const std::exception& e) { return report(ErrorCode::kInternal, call, e.what()); } catch (...) {
    return report(ErrorCode::kInternal, call, "an exception of unknown type");
  }
}

template <class T>
const T& find(const HandleTable<T>& table, std::uint64_t id, const char* what) {
  const T* value = table.find(id);
  if (!value) dead_handle(table.issued(id), what, id);
  return *value;
}

template <class T>
void destroy(HandleTable<T>& table, std::uint64_t id, const char* what) {
  T last;
  if (!table.remove(id, last)) dead_handle(table.issued(id), what, id);
}

}  // namespace q4::capi
