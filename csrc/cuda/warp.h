// Everything that is an instruction of the GPU rather than C++: fused multiply-add, asynchronous copies, shuffles,
// tensor cores. Each function has a twin for the host that does what the PTX manual says, with the fragment layouts
// written out, so that a body runs the same way under HostContext. All PTX of the project's C++ kernels stands here,
// except in kernels for one architecture (wgmma, TMA), which have no twin and say so.
//
// Functions that take a context are collective: all 32 lanes of the warp call them.
#pragma once
#include "context.h"

#if defined(HCE_HOST)
#include <cmath>
#include <deque>
#endif

namespace hce::cuda {

// Four floats that move as one 128-bit access; must be aligned to 16 bytes in memory.
struct alignas(16) Float4 {
  float x, y, z, w;
};

// Two, of 64 bits, aligned to 8.
struct alignas(8) Float2 {
  float x, y;
};

// ---- arithmetic of one lane. Each is one rounding, whatever the compiler's flags.

device_function float Fma(float a, float b, float c) {
#if defined(HCE_HOST)
  return std::fmaf(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}
device_function float Add(float a, float b) {
#if defined(HCE_HOST)
  return a + b;
#else
  return __fadd_rn(a, b);
#endif
}
device_function float Sub(float a, float b) {
#if defined(HCE_HOST)
  return a - b;
#else
  return __fsub_rn(a, b);
#endif
}
device_function float Mul(float a, float b) {
#if defined(HCE_HOST)
  return a * b;
#else
  return __fmul_rn(a, b);
#endif
}
device_function float Div(float a, float b) {
#if defined(HCE_HOST)
  return a / b;
#else
  return __fdiv_rn(a, b);
#endif
}

// The clamp of the CPU kernels, bit for bit: a comparison with NaN is false, so NaN stays, and so does the sign of a
// zero (max.f32 would make -0 to +0).
device_function float Clamp(float v, float low, float high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

device_function uint32_t Bits(float v) {
#if defined(HCE_HOST)
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
#else
  return __float_as_uint(v);
#endif
}
device_function float FromBits(uint32_t bits) {
#if defined(HCE_HOST)
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
#else
  return __uint_as_float(bits);
#endif
}

// ---- memory

// Of data that no thread writes while the kernel runs: goes through the read-only path of L1.
device_function float LoadReadOnly(const float* p) {
#if defined(HCE_HOST)
  return *p;
#else
  return __ldg(p);
#endif
}
device_function Float4 LoadReadOnly(const Float4* p) {
#if defined(HCE_HOST)
  return *p;
#else
  const float4 v = __ldg(reinterpret_cast<const float4*>(p));
  return {v.x, v.y, v.z, v.w};
#endif
}
device_function Float2 LoadReadOnly(const Float2* p) {
#if defined(HCE_HOST)
  return *p;
#else
  const float2 v = __ldg(reinterpret_cast<const float2*>(p));
  return {v.x, v.y};
#endif
}

// To global memory, as one access. An assignment, of a float4 too, may become four stores of 32 bits, 16 bytes apart from lane
// to lane: nvcc takes structures apart and does not always put them together again.
device_function void Store(Float4* to, const Float4& v) {
#if defined(HCE_HOST)
  *to = v;
#else
  asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
#endif
}
device_function void Store(Float2* to, const Float2& v) {
#if defined(HCE_HOST)
  *to = v;
#else
  asm volatile("st.global.v2.f32 [%0], {%1,%2};" ::"l"(__cvta_generic_to_global(to)), "f"(v.x), "f"(v.y) : "memory");
#endif
}

#if defined(HCE_HOST)
// The copies that this thread has started. A group is copied when it is waited for and not before: a kernel that reads
// too early finds what was there.
struct PendingCopies {
  struct Copy {
    void* to;
    const void* from;
    int bytes, zeros;  // zeros follow the bytes
  };
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;

  static PendingCopies& OfThisThread() {
    thread_local PendingCopies copies;
    return copies;
  }
  bool None() const { return open.empty() && groups.empty(); }
};
#endif

// Starts a copy of 16 bytes from global to shared memory, both aligned to 16. It is done, and visible to this thread,
// after CopyAsyncWait; visible to the block after a Sync() that follows.
device_function void CopyAsync16(void* shared, const void* global) {
#if defined(HCE_HOST)
  PendingCopies::OfThisThread().open.push_back({shared, global, 16, 0});
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#endif
}
// The same for 4 bytes, aligned to 4.
device_function void CopyAsync4(void* shared, const void* global) {
#if defined(HCE_HOST)
  PendingCopies::OfThisThread().open.push_back({shared, global, 4, 0});
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
#endif
}
// The same, of which only the first `bytes` are read; zeros take the place of the others.
device_function void CopyAsync16(void* shared, const void* global, int bytes) {
#if defined(HCE_HOST)
  PendingCopies::OfThisThread().open.push_back({shared, global, bytes, 16 - bytes});
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}
device_function void CopyAsync4(void* shared, const void* global, int bytes) {
#if defined(HCE_HOST)
  PendingCopies::OfThisThread().open.push_back({shared, global, bytes, 4 - bytes});
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}
// Ends a group: the copies started since the last call.
device_function void CopyAsyncCommit() {
#if defined(HCE_HOST)
  PendingCopies& pending = PendingCopies::OfThisThread();
  pending.groups.push_back(std::move(pending.open));
  pending.open.clear();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most N of the groups of this thread are still under way.
template <int N>
device_function void CopyAsyncWait() {
#if defined(HCE_HOST)
  PendingCopies& pending = PendingCopies::OfThisThread();
  while (pending.groups.size() > N) {
    for (const PendingCopies::Copy& c : pending.groups.front()) {
      std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
      std::memset(static_cast<uint8_t*>(c.to) + c.bytes, 0, static_cast<size_t>(c.zeros));
    }
    pending.groups.pop_front();
  }
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- shuffles

// The value of `v` in lane `lane` (taken modulo 32).
template <class Context>
device_function float Shuffle([[maybe_unused]] Context& ctx, float v, int lane) {
#if defined(HCE_HOST)
  ctx.Show(&v, 1);
  const float peer = FromBits(ctx.Peer(lane & (kWarp - 1))[0]);
  ctx.Done();
  return peer;
#else
  return __shfl_sync(0xffffffffu, v, lane);
#endif
}
// The same of four floats.
template <class Context>
device_function Float4 Shuffle([[maybe_unused]] Context& ctx, const Float4& v, int lane) {
#if defined(HCE_HOST)
  ctx.Show(&v, 4);
  Float4 peer;
  std::memcpy(&peer, ctx.Peer(lane & (kWarp - 1)), sizeof peer);
  ctx.Done();
  return peer;
#else
  return {__shfl_sync(0xffffffffu, v.x, lane), __shfl_sync(0xffffffffu, v.y, lane), __shfl_sync(0xffffffffu, v.z, lane),
          __shfl_sync(0xffffffffu, v.w, lane)};
#endif
}
// The value of `v` in the lane whose number differs in the bits of `mask`.
template <class Context>
device_function float ShuffleXor([[maybe_unused]] Context& ctx, float v, int mask) {
#if defined(HCE_HOST)
  return Shuffle(ctx, v, ctx.Lane() ^ mask);
#else
  return __shfl_xor_sync(0xffffffffu, v, mask);
#endif
}
// Bit l is the predicate of lane l.
template <class Context>
device_function uint32_t Ballot([[maybe_unused]] Context& ctx, bool predicate) {
#if defined(HCE_HOST)
  const uint32_t own = predicate;
  ctx.Show(&own, 1);
  uint32_t bits = 0;
  for (int l = 0; l < kWarp; ++l) bits |= ctx.Peer(l)[0] << l;
  ctx.Done();
  return bits;
#else
  return __ballot_sync(0xffffffffu, predicate);
#endif
}

// ---- tensor cores. With g = lane / 4 and t = lane % 4, in all shapes m16n8kK here:
//
//   C, D  c[0] (g, 2t)   c[1] (g, 2t + 1)   c[2] (g + 8, 2t)   c[3] (g + 8, 2t + 1)
//   k8,  32-bit    a[0] (g, t)   a[1] (g + 8, t)   a[2] (g, t + 4)   a[3] (g + 8, t + 4)     b[0] (t, g)   b[1] (t + 4, g)
//   k16, 16-bit    a[0] (g, 2t..) a[1] (g + 8, 2t..) a[2] (g, 2t + 8..) a[3] (g + 8, 2t + 8..)
//                  b[0] (2t.., g) b[1] (2t + 8.., g)
//
// where a pair "2t.." is elements 2t (low half) and 2t + 1 (high half) along K. Products are exact; the hardware's sum
// rounds in ways that are not documented, the host's is the correctly rounded one. So these are compared within a
// bound.
//
// All lanes must execute the same mma. A compiler that took it for arithmetic could move it to where its result is used, which
// may be a branch that some lanes take; `volatile` forbids it.

// A float as the nearest TF32 value (10 bits of fraction), half away from zero; the bits of a float.
device_function uint32_t ToTf32(float v) {
#if defined(HCE_HOST)
  const uint32_t bits = Bits(v);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#endif
}

#if defined(HCE_HOST)
inline float HalfToFloat(uint32_t h) {  // IEEE binary16
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ffu;
  if (exponent == 31) return FromBits(sign | 0x7f800000u | fraction << 13);
  const float magnitude = exponent ? std::ldexp(static_cast<float>(fraction | 0x400u), static_cast<int>(exponent) - 25)
                                   : std::ldexp(static_cast<float>(fraction), -24);
  return sign ? -magnitude : magnitude;
}
inline float BfloatToFloat(uint32_t h) { return FromBits(h << 16); }

// To the nearest, ties to even, as cvt.rn does: above the largest finite value infinity, any NaN the canonical one.
inline uint32_t FloatToHalf(float v) {
  const uint32_t sign = Bits(v) >> 16 & 0x8000u, magnitude = Bits(v) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520, halfway between 65504 and the next step
  if (magnitude < 0x38800000u)                          // 2^-14: below it halves are multiples of 2^-24
    return sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(FromBits(magnitude), 24)));
  return sign | (((magnitude + 0xfffu + (magnitude >> 13 & 1)) >> 13) - (112u << 10));
}
inline uint32_t FloatToBfloat(float v) {
  if (std::isnan(v)) return 0x7fffu;
  return (Bits(v) + 0x7fffu + (Bits(v) >> 16 & 1)) >> 16;
}

// d += A B of one m16n8kK; a row of A is 8 words of PerWord elements; decode(word, n) is element n of a word.
template <int K, int PerWord, class Decode>
inline void HostMma(HostContext& ctx, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    const Decode& decode) {
  uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  ctx.Show(own, 6);
  const int g = ctx.Lane() / 4, t = ctx.Lane() % 4;
  for (int e = 0; e < 4; ++e) {
    const int row = g + (e / 2) * 8, column = 2 * t + e % 2;
    double sum = 0.0;
    for (int k = 0; k < K; ++k) {
      const int half = k % PerWord, word = k / PerWord;  // word: 0 to 7; the first four are a[0..1], b[0]
      const int a_register = (row >= 8) + 2 * (word >= 4), b_register = 4 + (word >= 4);
      const uint32_t x = ctx.Peer((row % 8) * 4 + word % 4)[a_register], w = ctx.Peer(column * 4 + word % 4)[b_register];
      sum += static_cast<double>(decode(x, half)) * decode(w, half);
    }
    d[e] = static_cast<float>(static_cast<double>(d[e]) + sum);
  }
  ctx.Done();
}
#endif

// Two floats as binary16 or bfloat16, to the nearest: `low` in the low half of the word.
device_function uint32_t ToHalves(float low, float high) {
#if defined(HCE_HOST)
  return FloatToHalf(low) | FloatToHalf(high) << 16;
#else
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}
device_function uint32_t ToBfloats(float low, float high) {
#if defined(HCE_HOST)
  return FloatToBfloat(low) | FloatToBfloat(high) << 16;
#else
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}
device_function void FromHalves(uint32_t word, float& low, float& high) {
#if defined(HCE_HOST)
  low = HalfToFloat(word & 0xffffu), high = HalfToFloat(word >> 16);
#else
  asm("{\n\t.reg .b16 l, h;\n\tmov.b32 {l, h}, %2;\n\tcvt.f32.f16 %0, l;\n\tcvt.f32.f16 %1, h;\n\t}"
      : "=f"(low), "=f"(high)
      : "r"(word));
#endif
}

// d += A (16 x 8, TF32) * B (8 x 8, TF32). The lower 13 bits of a and b are ignored.
template <class Context>
device_function void MmaTf32([[maybe_unused]] Context& ctx, float (&d)[4], const uint32_t (&a)[4],
                             const uint32_t (&b)[2]) {
#if defined(HCE_HOST)
  HostMma<8, 1>(ctx, d, a, b, [](uint32_t word, int) { return FromBits(word & 0xffffe000u); });
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// d += A (16 x 16, binary16) * B (16 x 8, binary16).
template <class Context>
device_function void MmaF16([[maybe_unused]] Context& ctx, float (&d)[4], const uint32_t (&a)[4],
                             const uint32_t (&b)[2]) {
#if defined(HCE_HOST)
  HostMma<16, 2>(ctx, d, a, b, [](uint32_t word, int half) { return HalfToFloat(word >> (16 * half) & 0xffffu); });
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// d += A (16 x 16, bfloat16) * B (16 x 8, bfloat16).
template <class Context>
device_function void MmaBf16([[maybe_unused]] Context& ctx, float (&d)[4], const uint32_t (&a)[4],
                             const uint32_t (&b)[2]) {
#if defined(HCE_HOST)
  HostMma<16, 2>(ctx, d, a, b, [](uint32_t word, int half) { return BfloatToFloat(word >> (16 * half) & 0xffffu); });
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8 m + r gives the address of row r of matrix m: 16
// bytes, aligned to 16. r[m] of lane l gets elements (l / 4, 2 (l % 4)) in its low half and (l / 4, 2 (l % 4) + 1) in
// its high half; with Transposed, elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
template <bool Transposed = false, class Context>
device_function void LoadMatrices([[maybe_unused]] Context& ctx, uint32_t (&r)[4], const void* row) {
#if defined(HCE_HOST)
  uint32_t own[4];
  std::memcpy(own, row, 16);
  ctx.Show(own, 4);
  const int major = ctx.Lane() / 4, minor = 2 * (ctx.Lane() % 4);
  const auto element = [&](int m, int i, int j) { return ctx.Peer(8 * m + i)[j / 2] >> (16 * (j % 2)) & 0xffffu; };
  for (int m = 0; m < 4; ++m)
    r[m] = Transposed ? element(m, minor, major) | element(m, minor + 1, major) << 16
                      : element(m, major, minor) | element(m, major, minor + 1) << 16;
  ctx.Done();
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#endif
}

}  // namespace hce::cuda
