// wgmma.m64nNk16: d[64 x N] += a[64 x 16, registers] * b[16 x N, shared memory], fp16 or bf16 in, fp32 out; N = 2
// kRegs.
#pragma once
#include "device.h"

namespace q4 {

#if Q4_EMULATED
void wgmma_fence();
void wgmma_commit();
template <int kPending>
void wgmma_wait();
inline void wgmma_pin(u32 (&)[4]) {}
template <int kRegs>
void wgmma_pin(float (&)[kRegs]) {}
inline void keep_in_register(u32&) {}
template <bool kBf16, int kRegs>
void wgmma(float (&d)[kRegs], const u32 (&a)[4], u64 b, int add);
#else
Q4_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
Q4_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most kPending committed groups are in flight.
template <int kPending>
Q4_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps what computes these registers before the fence: sunk behind it, ptxas would have to fence again.
Q4_DEVICE void wgmma_pin(u32 (&a)[4]) { asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])); }
/// Right after the wait for a wgmma that writes these sums: the compiler, which takes them for written when the wgmma
/// was issued, would be free to copy them ahead of the wait.
template <int kRegs>
Q4_DEVICE void wgmma_pin(float (&sums)[kRegs]) {
#pragma unroll
  for (int i = 0; i < kRegs; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

/// What a loop would else compute again each time round.
Q4_DEVICE void keep_in_register(u32& v) { asm volatile("" : "+r"(v)); }
#endif

/// Descriptor of b: K-major rows of 64 elements (128 bytes), 128-byte swizzle, tile 1024-byte aligned:
///   bits 0..13 address / 16; 16..29 leading offset / 16 (unused when swizzled: 1); 32..45 stride between blocks of 8
///   rows / 16 (1024 bytes: 64); 62..63 layout 1 = 128-byte swizzle. The next 16 of k: address + 32 bytes, so + 2.
Q4_DEVICE u64 wgmma_descriptor(u32 address) {
  return static_cast<u64>((address & 0x3ffffu) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

#if !Q4_EMULATED
// Operands are numbered: the sums first, then a0..a3, the descriptor and whether to add to d or to overwrite it. The
// macros below only spell the lists; they end with the file.
#define Q4_SUMS8(i)                                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define Q4_SUMS32(i) Q4_SUMS8(i), Q4_SUMS8(i + 8), Q4_SUMS8(i + 16), Q4_SUMS8(i + 24)
#define Q4_WGMMA(text, ...) \
  asm volatile(text:__VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

#define Q4_TEXT(type)                                                                               \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\nwgmma.mma_async.sync.aligned.m64n16k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7"                                                                         \
  "}, {%8,%9,%10,%11}, %12, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[8], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS8(0));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS8(0));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                               \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"                                           \
  "}, {%16,%17,%18,%19}, %20, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[16], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS8(0), Q4_SUMS8(8));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS8(0), Q4_SUMS8(8));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                               \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\nwgmma.mma_async.sync.aligned.m64n48k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23"           \
  "}, {%24,%25,%26,%27}, %28, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[24], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS8(0), Q4_SUMS8(8), Q4_SUMS8(16));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS8(0), Q4_SUMS8(8), Q4_SUMS8(16));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                               \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"          \
  "%24,%25,%26,%27,%28,%29,%30,%31"                                                                 \
  "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[32], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                               \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %45, 0;\nwgmma.mma_async.sync.aligned.m64n80k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"          \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"                                 \
  "}, {%40,%41,%42,%43}, %44, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[40], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS8(32));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS8(32));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                               \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\nwgmma.mma_async.sync.aligned.m64n96k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"          \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  "}, {%48,%49,%50,%51}, %52, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[48], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS8(32), Q4_SUMS8(40));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS8(32), Q4_SUMS8(40));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                                \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %61, 0;\nwgmma.mma_async.sync.aligned.m64n112k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"           \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55"                                                                  \
  "}, {%56,%57,%58,%59}, %60, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[56], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS8(32), Q4_SUMS8(40), Q4_SUMS8(48));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS8(32), Q4_SUMS8(40), Q4_SUMS8(48));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                                \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"           \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"                                  \
  "}, {%64,%65,%66,%67}, %68, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[64], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS32(32));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS32(32));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                                \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %85, 0;\nwgmma.mma_async.sync.aligned.m64n160k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"           \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71," \
  "%72,%73,%74,%75,%76,%77,%78,%79"                                                                  \
  "}, {%80,%81,%82,%83}, %84, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[80], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS8(64), Q4_SUMS8(72));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS8(64), Q4_SUMS8(72));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                                 \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\nwgmma.mma_async.sync.aligned.m64n192k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"            \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"  \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,"  \
  "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"   \
  "}, {%96,%97,%98,%99}, %100, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[96], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS32(64));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS32(64));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                                 \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %117, 0;\nwgmma.mma_async.sync.aligned.m64n224k16.f32." type " {" \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"            \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"  \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,"  \
  "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"  \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"                       \
  "}, {%112,%113,%114,%115}, %116, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[112], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS32(64), Q4_SUMS8(96), Q4_SUMS8(104));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS32(64), Q4_SUMS8(96), Q4_SUMS8(104));
}
#undef Q4_TEXT

#define Q4_TEXT(type)                                                                                                \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." type " {"                \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"                           \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                 \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,"                 \
  "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                 \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%" \
  "119,"                                                                                                             \
  "%120,%121,%122,%123,%124,%125,%126,%127"                                                                          \
  "}, {%128,%129,%130,%131}, %132, p, 1, 1, 0;\n}\n"
template <bool kBf16>
Q4_DEVICE void wgmma(float (&d)[128], const u32 (&a)[4], u64 b, int add) {
  if constexpr (kBf16)
    Q4_WGMMA(Q4_TEXT("bf16.bf16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS32(64), Q4_SUMS32(96));
  else
    Q4_WGMMA(Q4_TEXT("f16.f16"), Q4_SUMS32(0), Q4_SUMS32(32), Q4_SUMS32(64), Q4_SUMS32(96));
}
#undef Q4_TEXT

#undef Q4_SUMS8
#undef Q4_SUMS32
#undef Q4_WGMMA
#endif

}  // namespace q4
