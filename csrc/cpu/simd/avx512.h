// AVX-512 with VNNI: one register holds the 16 images of a tile.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace hce::avx512vnni {

struct Simd {
  static constexpr int kLanes = 16;
  // Register blocks, pixels x output channels. 32 registers: 4 x 6 floats leave 24 accumulators, 4 inputs, 1 weight; 4 divides the
  // widths 32, 16, 8 and 56, and 4 x 4 code accumulators hide the latency of vpdpbusd (5 cycles at 2 per cycle).
  static constexpr int kPixelsU8 = 4;
  static constexpr int kPixelsF32 = 4;
  static constexpr int kChannelsF32 = 6;
  using F = __m512;
  using I = __m512i;

  static F Load(const float* p) { return _mm512_load_ps(p); }
  static void Store(float* p, F v) { _mm512_store_ps(p, v); }
  static F Set(float v) { return _mm512_set1_ps(v); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F FmaNeg(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
  // Operand order keeps a NaN in v: the second operand is returned when either is NaN.
  static F Clamp(F v, F low, F high) { return _mm512_min_ps(high, _mm512_max_ps(low, v)); }

  static I LoadI(const void* p) { return _mm512_load_si512(p); }
  static void StoreI(void* p, I v) { _mm512_store_si512(p, v); }
  static I SetI(int32_t v) { return _mm512_set1_epi32(v); }
  static I ZeroI() { return _mm512_setzero_si512(); }
  static I AddI(I a, I b) { return _mm512_add_epi32(a, b); }
  static I SubI(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I MulI(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I MinI(I a, I b) { return _mm512_min_epi32(a, b); }
  static I MaxI(I a, I b) { return _mm512_max_epi32(a, b); }
  static I OrI(I a, I b) { return _mm512_or_si512(a, b); }
  static I AndI(I a, I b) { return _mm512_and_si512(a, b); }
  template <int kBits>
  static I ShiftLeft(I v) { return _mm512_slli_epi32(v, kBits); }
  template <int kBits>
  static I ShiftRight(I v) { return _mm512_srli_epi32(v, kBits); }
  template <int kBits>
  static I ShiftRightSigned(I v) { return _mm512_srai_epi32(v, kBits); }
  static F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }
  static I Round(F v) { return _mm512_cvtps_epi32(v); }  // half to even, the MXCSR default

  // acc[l] += sum_{j<4} x[l][j] * w[j]; x unsigned bytes, w signed bytes, the same four for every lane. No saturation.
  template <bool kPairsFit>
  static I Dot4(I acc, I x, I w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static I Broadcast4(const int8_t* w) {
    int32_t v;
    __builtin_memcpy(&v, w, 4);
    return _mm512_set1_epi32(v);
  }
};

}  // namespace hce::avx512vnni
