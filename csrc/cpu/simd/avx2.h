// AVX2 with FMA: one register holds 8 of the 16 images of a tile; kernels take a tile in two halves.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace hce::avx2 {

struct Simd {
  static constexpr int kLanes = 8;
  // Register blocks, pixels x output channels. 16 registers: 3 x 4 floats leave 12 accumulators, 3 inputs, 1 weight; codes need two more for
  // the 16-bit step.
  static constexpr int kPixelsU8 = 2;
  static constexpr int kChannelsU8 = 4;
  static constexpr int kTilesU8 = 2;  // integer Winograd, x 4 channels
  static constexpr int kPixelsF32 = 3;
  static constexpr int kChannelsF32 = 4;
  static constexpr int kDepthwiseRows = 2;
  static constexpr int kChannelsWinograd = 6;  // for two tiles: 12 accumulators, 2 inputs, 1 weight
  using F = __m256;
  using I = __m256i;

  static F Load(const float* p) { return _mm256_load_ps(p); }
  static void Store(float* p, F v) { _mm256_store_ps(p, v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F FmaNeg(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static F Clamp(F v, F low, F high) { return _mm256_min_ps(high, _mm256_max_ps(low, v)); }
  // The larger one; a NaN, once seen, stays: max returns its second operand if either is NaN, or if they are equal.
  static F MaxOrNan(F best, F v) { return _mm256_blendv_ps(_mm256_max_ps(v, best), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); }

  static I LoadI(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
  static void StoreI(void* p, I v) { _mm256_store_si256(static_cast<__m256i*>(p), v); }
  static I SetI(int32_t v) { return _mm256_set1_epi32(v); }
  static I ZeroI() { return _mm256_setzero_si256(); }
  static I AddI(I a, I b) { return _mm256_add_epi32(a, b); }
  static I SubI(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I MulI(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static I MinI(I a, I b) { return _mm256_min_epi32(a, b); }
  static I MaxI(I a, I b) { return _mm256_max_epi32(a, b); }
  static I OrI(I a, I b) { return _mm256_or_si256(a, b); }
  static I AndI(I a, I b) { return _mm256_and_si256(a, b); }
  static I AddBytes(I a, I b) { return _mm256_add_epi8(a, b); }  // modulo 256
  static I SubBytes(I a, I b) { return _mm256_sub_epi8(a, b); }
  template <int kBits>
  static I ShiftLeft(I v) { return _mm256_slli_epi32(v, kBits); }
  template <int kBits>
  static I ShiftRight(I v) { return _mm256_srli_epi32(v, kBits); }
  template <int kBits>
  static I ShiftRightSigned(I v) { return _mm256_srai_epi32(v, kBits); }
  static F ToFloat(I v) { return _mm256_cvtepi32_ps(v); }
  static I Round(F v) { return _mm256_cvtps_epi32(v); }

  // As in avx512.h, eight images at a time.
  static constexpr bool kTransposesTiles = false;
  static constexpr bool kSaturatingPack = true;
  static I ClampBytes(I codes, int qmin, int qmax) {
    if (qmin > 0) codes = _mm256_max_epu8(codes, _mm256_set1_epi8(static_cast<char>(qmin)));
    if (qmax < 255) codes = _mm256_min_epu8(codes, _mm256_set1_epi8(static_cast<char>(qmax)));
    return codes;
  }
  static I PackCodes(const I (&v)[4], int zero_point, int qmin, int qmax) {
    I low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    if (zero_point) {
      const I z = _mm256_set1_epi16(static_cast<short>(zero_point));
      low = _mm256_adds_epi16(low, z);
      high = _mm256_adds_epi16(high, z);
    }
    const I order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const I codes = _mm256_shuffle_epi8(_mm256_packus_epi16(low, high), order);
    return ClampBytes(codes, qmin, qmax);
  }
  static void Quads(I a, I b, I c, I d, I (&q)[4]) {
    const I ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
    const I ab2 = _mm256_unpackhi_epi8(a, b), cd2 = _mm256_unpackhi_epi8(c, d);
    q[0] = _mm256_unpacklo_epi16(ab, cd);
    q[1] = _mm256_unpackhi_epi16(ab, cd);
    q[2] = _mm256_unpacklo_epi16(ab2, cd2);
    q[3] = _mm256_unpackhi_epi16(ab2, cd2);
  }
  static I PackQuads(const I (&v)[4], int zero_point, int qmin, int qmax) {
    I low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    if (zero_point) {
      const I z = _mm256_set1_epi16(static_cast<short>(zero_point));
      low = _mm256_adds_epi16(low, z);
      high = _mm256_adds_epi16(high, z);
    }
    return ClampBytes(_mm256_packus_epi16(low, high), qmin, qmax);
  }
  static I Repeat(const void* p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static F Repeat(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  // min((r * half + 2^14) >> 15, qmax) for every byte r of a line, half < 2^15.
  static I RecodeLine(I line, int half, int qmax) {
    const I factor = _mm256_set1_epi16(static_cast<short>(half));
    const I even = _mm256_mulhrs_epi16(_mm256_and_si256(line, _mm256_set1_epi16(0xff)), factor);
    const I odd = _mm256_mulhrs_epi16(_mm256_srli_epi16(line, 8), factor);
    return _mm256_min_epu8(_mm256_or_si256(even, _mm256_slli_epi16(odd, 8)), _mm256_set1_epi8(static_cast<char>(qmax)));
  }

  // Byte kByte of each lane as a number.
  template <int kByte>
  static I Byte(I v) {
    if constexpr (kByte == 0) return AndI(v, SetI(0xff));
    if constexpr (kByte == 3) return ShiftRight<24>(v);
    constexpr char b = kByte;
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi8(b, -1, -1, -1, b + 4, -1, -1, -1, b + 8, -1, -1, -1, b + 12, -1, -1, -1)));
  }

  // Sums of two products in int16, many steps long: two instructions per 32 products instead of three.
  // Words of one line: to[n] = order[n] < 0 ? padding : from[order[n]], where MergeLanes leaves to[n]. `to` may be `from`.
  struct LaneOrder {
    I lanes[2];
  };
  static LaneOrder LoadLaneOrder(const int32_t* order) {
    return {{_mm256_loadu_si256(reinterpret_cast<const I*>(order)), _mm256_loadu_si256(reinterpret_cast<const I*>(order + 8))}};
  }
  // Bits 0 to 2 of a lane's order choose within a half, bit 3 the half, the sign `otherwise`.
  static I Ordered(I low, I high, I order, I otherwise) {
    const F in_low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, order));
    const F in_high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, order));
    const F moved = _mm256_blendv_ps(in_low, in_high, _mm256_castsi256_ps(_mm256_slli_epi32(order, 28)));
    return _mm256_castps_si256(_mm256_blendv_ps(moved, _mm256_castsi256_ps(otherwise), _mm256_castsi256_ps(order)));
  }
  static void MoveLanes(uint8_t* to, const uint8_t* from, const LaneOrder& order, uint32_t padding) {
    const I low = LoadI(from), high = LoadI(from + 32), pad = SetI(static_cast<int32_t>(padding));
    StoreI(to, Ordered(low, high, order.lanes[0], pad));
    StoreI(to + 32, Ordered(low, high, order.lanes[1], pad));
  }
  static void MergeLanes(uint8_t* to, const uint8_t* from, const LaneOrder& order) {
    const I low = LoadI(from), high = LoadI(from + 32);
    StoreI(to, Ordered(low, high, order.lanes[0], LoadI(to)));
    StoreI(to + 32, Ordered(low, high, order.lanes[1], LoadI(to + 32)));
  }

  static constexpr bool kPairSums = true;
  static I AddPairs(I sums, I x, I w) { return _mm256_add_epi16(sums, _mm256_maddubs_epi16(x, w)); }
  template <int kFactor>  // acc + kFactor * sums
  static I Widen(I acc, I sums) { return _mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(kFactor))); }
  template <int kNibble>  // four bits of every byte
  static I Nibbles(I x) { return _mm256_and_si256(kNibble ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15)); }

  // vpmaddubsw adds two products in int16 and saturates. kPairsFit: the caller has proven 2 * max(x) * max|w| < 2^15,
  // so it cannot. Otherwise x is split into its low 7 bits and its top bit: 2 * 127 * 128 < 2^15 and the top bit's
  // pairs are weighted by 128 in the widening step, which makes 8-bit codes exact as well, at twice the work.
  template <bool kPairsFit>
  static I Dot4(I acc, I x, I w) {
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (kPairsFit) {
      return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones));
    } else {
      const __m256i low = _mm256_and_si256(x, _mm256_set1_epi8(0x7f));
      const __m256i top = _mm256_and_si256(_mm256_srli_epi16(x, 7), _mm256_set1_epi8(1));
      acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(low, w), ones));
      return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(top, w), _mm256_set1_epi16(128)));
    }
  }
  static I Broadcast4(const int8_t* w) {
    int32_t v;
    __builtin_memcpy(&v, w, 4);
    return _mm256_set1_epi32(v);
  }
};

}  // namespace hce::avx2
