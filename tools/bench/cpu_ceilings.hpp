// What this machine's memory, its arithmetic units and its BLAS reach at best: the roof under which CPU times are read.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matmul.hpp>
#include <string>

#include "runtime/backends/backend.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

/// Measured by all threads at once, in GB/s and in 1e9 operations (two a multiply-add) a second. 0: not there, or not
/// measured on this architecture.
struct CpuCeilings {
  double read_gbps = 0;   ///< cold memory in huge pages
  double fp32 = 0;        ///< FMA on the widest vectors
  double bf16 = 0;        ///< VDPBF16PS
  double int8 = 0;        ///< VPDPBUSD, else VPMADDUBSW and VPMADDWD
  double amx_bf16 = 0;    ///< TDPBF16PS
  double amx_loaded = 0;  ///< the same with a load of a tile from the first cache for each product, as 2 x 2 sums need
  double amx_int8 = 0;    ///< TDPBUSD
  double blas = 0;        ///< cblas_sgemm of a square matrix, with the BLAS's own threads
  double barrier_us = 0;  ///< handing one empty task to each thread, and waiting for all: the least that was seen
  std::string blas_name;  ///< or why there is none

  /// Best of these and `other`: a ceiling is the most that was seen.
  void merge(const CpuCeilings& other);
  /// The vector unit's peak that serves these activations without tiles: FMA for fp16 and fp32, VDPBF16PS for bf16.
  double vector_peak(DType activation, Math math) const;
  /// The best peak of any unit: AMX multiplies bf16 as they are, fp16 as two terms and fp32 as three.
  double peak(DType activation, Math math) const;
  /// max(packed bytes / read bandwidth, operations / peak), in microseconds.
  double floor_us(double bytes, double flops, DType activation, Math math) const;
  std::string str() const;
  Json json() const;
};

/// Takes about half a second. `backend` is the CPU's.
CpuCeilings measure_cpu_ceilings(const std::shared_ptr<DeviceBackend>& backend);

}  // namespace q4::tools
