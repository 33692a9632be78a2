// read: reads memory and does nothing with it: the floor that a memory-bound kernel is measured against.
#pragma once
#include "device.h"

namespace q4 {

struct ReadConfig {
  int threads = 256;
  int loads = 8;  ///< 16-byte loads of a thread in flight

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads, 256, 512, 1024), v("loads", loads, 4, 8, 16);
  }
};

struct ReadArgs {
  const u8* data;  ///< 16-byte aligned
  i64 bytes;       ///< a multiple of 16
  u32* sink;       ///< one word, written only if the data is one value that it never is
};

template <ReadConfig C>
Q4_DEVICE void read(const ReadArgs& a) {
  const i64 words = a.bytes / 16, step = static_cast<i64>(block_count()) * C.threads;
  u32 seen = 0;
  for (i64 i = static_cast<i64>(block_index()) * C.threads + thread_index(); i < words; i += step * C.loads) {
    Words4 v[C.loads];
#pragma unroll
    for (int j = 0; j < C.loads; ++j)
      if (i + j * step < words)
        v[j] = load_stream(a.data + (i + j * step) * 16);
      else
        v[j] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < C.loads; ++j) seen |= v[j].x & v[j].y & v[j].z & v[j].w;
  }
  if (seen == 0x9e3779b9u) *a.sink = seen;
}

}  // namespace q4
