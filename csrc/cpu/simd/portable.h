// Plain C++ on compiler vectors of four lanes: any processor that GCC or Clang targets. Correct first, not tuned.
#pragma once
#include <cstdint>

namespace hce::portable {

struct Simd {
  static constexpr int kLanes = 4;
  static constexpr bool kTransposesTiles = false;
  static constexpr bool kPairSums = false;
  static constexpr bool kSaturatingPack = false;
  // Register blocks, pixels x output channels. Small blocks: the compiler sees them through its own allocator.
  static constexpr int kPixelsU8 = 2;
  static constexpr int kChannelsU8 = 4;
  static constexpr int kTilesU8 = 2;  // integer Winograd, x 4 channels
  static constexpr int kPixelsF32 = 2;
  static constexpr int kChannelsF32 = 4;
  static constexpr int kDepthwiseRows = 2;
  static constexpr int kChannelsWinograd = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef uint8_t B __attribute__((vector_size(16)));

  static F Load(const float* p) { return *reinterpret_cast<const F*>(p); }
  static void Store(float* p, F v) { *reinterpret_cast<F*>(p) = v; }
  static F Set(float v) { return F{v, v, v, v}; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  // Two roundings here, one in the vector instruction sets: both are inside the float kernels' error bound.
  static F Fma(F a, F b, F c) { return a * b + c; }
  static F FmaNeg(F a, F b, F c) { return c - a * b; }
  static F Clamp(F v, F low, F high) {
    v = v < low ? low : v;  // a comparison with NaN is false, so NaN stays
    return v > high ? high : v;
  }
  // The larger one; a NaN, once seen, stays: v > NaN is false, and v != v catches a new one.
  static F MaxOrNan(F best, F v) {
    best = v > best ? v : best;
    return v != v ? v : best;
  }

  static I LoadI(const void* p) { return *static_cast<const I*>(p); }
  static void StoreI(void* p, I v) { *static_cast<I*>(p) = v; }
  static I SetI(int32_t v) { return I{v, v, v, v}; }
  static I ZeroI() { return I{0, 0, 0, 0}; }
  static I AddI(I a, I b) { return a + b; }
  static I SubI(I a, I b) { return a - b; }
  static I MulI(I a, I b) { return a * b; }
  static I MinI(I a, I b) { return a < b ? a : b; }
  static I MaxI(I a, I b) { return a > b ? a : b; }
  static I OrI(I a, I b) { return a | b; }
  static I AndI(I a, I b) { return a & b; }
  static I AddBytes(I a, I b) { return reinterpret_cast<I>(reinterpret_cast<B>(a) + reinterpret_cast<B>(b)); }  // modulo 256
  static I SubBytes(I a, I b) { return reinterpret_cast<I>(reinterpret_cast<B>(a) - reinterpret_cast<B>(b)); }
  template <int kBits>
  static I ShiftLeft(I v) { return reinterpret_cast<I>(reinterpret_cast<U>(v) << kBits); }  // signed, it may overflow
  template <int kBits>
  static I ShiftRight(I v) { return reinterpret_cast<I>(reinterpret_cast<U>(v) >> kBits); }
  template <int kBits>
  static I ShiftRightSigned(I v) { return v >> kBits; }
  template <int kByte>
  static I Byte(I v) { return ShiftRight<8 * kByte>(v) & SetI(0xff); }  // as a number
  static F ToFloat(I v) { return __builtin_convertvector(v, F); }
  // Round half to even by adding and taking away 1.5 * 2^23, exact for |v| < 2^22; callers clamp to byte codes first.
  static I Round(F v) {
    const F magic = Set(12582912.0f);
    return __builtin_convertvector((v + magic) - magic, I);
  }

  // Words of one line: to[n] = order[n] < 0 ? padding : from[order[n]], where MergeLanes leaves to[n]. `to` may be `from`.
  struct LaneOrder {
    const int32_t* lanes;
  };
  static LaneOrder LoadLaneOrder(const int32_t* order) { return {order}; }
  static void MoveLanes(uint8_t* to, const uint8_t* from, const LaneOrder& order, uint32_t padding) {
    uint32_t line[16], moved[16];
    __builtin_memcpy(line, from, sizeof line);
    for (int n = 0; n < 16; ++n) moved[n] = order.lanes[n] < 0 ? padding : line[order.lanes[n]];
    __builtin_memcpy(to, moved, sizeof moved);
  }
  static void MergeLanes(uint8_t* to, const uint8_t* from, const LaneOrder& order) {
    uint32_t line[16], moved[16];
    __builtin_memcpy(line, from, sizeof line);
    __builtin_memcpy(moved, to, sizeof moved);
    for (int n = 0; n < 16; ++n)
      if (order.lanes[n] >= 0) moved[n] = line[order.lanes[n]];
    __builtin_memcpy(to, moved, sizeof moved);
  }
  // As in avx512.h; a register is one 128-bit part: q[v] holds image v.
  static void Quads(I a, I b, I c, I d, I (&q)[4]) {
    for (int v = 0; v < 4; ++v)
      for (int k = 0; k < 4; ++k) {
        const auto byte = [&](I line) { return static_cast<uint32_t>(line[v]) >> (8 * k) & 0xff; };
        q[v][k] = static_cast<int32_t>(byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24);
      }
  }
  // Results must be in the range of codes already.
  static I PackQuads(const I (&v)[4], int zero_point, int, int) {
    I codes = ZeroI();
    for (int n = 0; n < 4; ++n)
      for (int k = 0; k < 4; ++k) codes[n] |= static_cast<int32_t>(static_cast<uint32_t>(v[n][k] + zero_point) << (8 * k));
    return codes;
  }
  static I Repeat(const void* p) {
    I v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static F Repeat(const float* p) {
    F v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }

  template <bool kPairsFit>
  static I Dot4(I acc, I x, I w) {
    const I mask = SetI(0xff);
    acc += (x & mask) * (ShiftLeft<24>(w) >> 24);
    acc += (ShiftRight<8>(x) & mask) * (ShiftLeft<16>(w) >> 24);
    acc += (ShiftRight<16>(x) & mask) * (ShiftLeft<8>(w) >> 24);
    acc += ShiftRight<24>(x) * (w >> 24);
    return acc;
  }
  static I Broadcast4(const int8_t* w) {
    int32_t v;
    __builtin_memcpy(&v, w, 4);
    return SetI(v);
  }
};

}  // namespace hce::portable
