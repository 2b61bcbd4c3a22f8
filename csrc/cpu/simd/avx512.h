// AVX-512 with VNNI: one register holds the 16 images of a tile.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace hce::avx512vnni {

struct Simd {
  static constexpr int kLanes = 16;
  // Register blocks, pixels x output channels. 32 registers: 4 x 6 floats leave 24 accumulators, 4 inputs, 1 weight; 4 divides the
  // widths 32, 16, 8 and 56. 3 x 8 codes load half the inputs of 6 x 4, and 24 accumulators hide the latency of vpdpbusd (5 cycles at
  // 2 per cycle) many times. Depthwise floats: 4 x 4 outputs leave 16 accumulators, 6 inputs, 1 weight.
  static constexpr int kPixelsU8 = 3;
  static constexpr int kChannelsU8 = 8;
  static constexpr int kTilesU8 = 4;  // integer Winograd, x 4 channels: 16 accumulators hide the latency as well
  static constexpr int kPixelsF32 = 4;
  static constexpr int kChannelsF32 = 6;
  static constexpr int kDepthwiseRows = 4;
  static constexpr int kChannelsWinograd = 8;  // for two tiles: 16 accumulators, and products that fit the first-level cache
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
  // The larger one; a NaN, once seen, stays: max returns its second operand if either is NaN, or if they are equal.
  static F MaxOrNan(F best, F v) {
    return _mm512_mask_mov_ps(_mm512_max_ps(v, best), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
  }

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
  static I AddBytes(I a, I b) { return _mm512_add_epi8(a, b); }  // modulo 256
  static I SubBytes(I a, I b) { return _mm512_sub_epi8(a, b); }
  template <int kBits>
  static I ShiftLeft(I v) { return _mm512_slli_epi32(v, kBits); }
  template <int kBits>
  static I ShiftRight(I v) { return _mm512_srli_epi32(v, kBits); }
  template <int kBits>
  static I ShiftRightSigned(I v) { return _mm512_srai_epi32(v, kBits); }
  static F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }
  static I Round(F v) { return _mm512_cvtps_epi32(v); }  // half to even, the MXCSR default

  // Four channels' results as one line of codes: byte k of each 4-byte lane is
  // clamp(v[k] + zero_point, qmin, qmax). The saturation of the packing instructions does the wide part of the clamp,
  // so v may be any int32.
  static constexpr bool kPairSums = false;
  static constexpr bool kSaturatingPack = true;
  static I ClampBytes(I codes, int qmin, int qmax) {
    if (qmin > 0) codes = _mm512_max_epu8(codes, _mm512_set1_epi8(static_cast<char>(qmin)));
    if (qmax < 255) codes = _mm512_min_epu8(codes, _mm512_set1_epi8(static_cast<char>(qmax)));
    return codes;
  }
  static I PackCodes(const I (&v)[4], int zero_point, int qmin, int qmax) {
    I low = _mm512_packs_epi32(v[0], v[1]), high = _mm512_packs_epi32(v[2], v[3]);
    if (zero_point) {
      const I z = _mm512_set1_epi16(static_cast<short>(zero_point));
      low = _mm512_adds_epi16(low, z);
      high = _mm512_adds_epi16(high, z);
    }
    const I order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const I codes = _mm512_shuffle_epi8(_mm512_packus_epi16(low, high), order);
    return ClampBytes(codes, qmin, qmax);
  }
  // Four lines to sixteen images of one channel quad each: dword c of 128-bit part p of q[v] holds the bytes of channel c of
  // image 4 p + v, first line in the lowest byte.
  static void Quads(I a, I b, I c, I d, I (&q)[4]) {
    const I ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
    const I ab2 = _mm512_unpackhi_epi8(a, b), cd2 = _mm512_unpackhi_epi8(c, d);
    q[0] = _mm512_unpacklo_epi16(ab, cd);
    q[1] = _mm512_unpackhi_epi16(ab, cd);
    q[2] = _mm512_unpacklo_epi16(ab2, cd2);
    q[3] = _mm512_unpackhi_epi16(ab2, cd2);
  }
  // As PackCodes for results in the order of Quads.
  static I PackQuads(const I (&v)[4], int zero_point, int qmin, int qmax) {
    I low = _mm512_packs_epi32(v[0], v[1]), high = _mm512_packs_epi32(v[2], v[3]);
    if (zero_point) {
      const I z = _mm512_set1_epi16(static_cast<short>(zero_point));
      low = _mm512_adds_epi16(low, z);
      high = _mm512_adds_epi16(high, z);
    }
    return ClampBytes(_mm512_packus_epi16(low, high), qmin, qmax);
  }
  // Sixteen bytes in every 128-bit part.
  static I Repeat(const void* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static F Repeat(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  // min((r * half + 2^14) >> 15, qmax) for every byte r of a line, half < 2^15.
  static I RecodeLine(I line, int half, int qmax) {
    const I factor = _mm512_set1_epi16(static_cast<short>(half));
    const I even = _mm512_mulhrs_epi16(_mm512_and_si512(line, _mm512_set1_epi16(0xff)), factor);
    const I odd = _mm512_mulhrs_epi16(_mm512_srli_epi16(line, 8), factor);
    return _mm512_min_epu8(_mm512_or_si512(even, _mm512_slli_epi16(odd, 8)), _mm512_set1_epi8(static_cast<char>(qmax)));
  }

  // Byte kByte of each lane as a number.
  template <int kByte>
  static I Byte(I v) {
    if constexpr (kByte == 0) return AndI(v, SetI(0xff));
    if constexpr (kByte == 3) return ShiftRight<24>(v);
    constexpr char b = kByte;
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(b, -1, -1, -1, b + 4, -1, -1, -1, b + 8, -1, -1, -1, b + 12, -1, -1, -1)));
  }

  // The first `count` <= 16 pixels of 3 bytes at p, one per lane, fourth byte 0; reads no byte behind them.
  static constexpr bool kTransposesTiles = true;
  static I LoadPixels3(const uint8_t* p, int count) {
    const I bytes = _mm512_maskz_loadu_epi8((uint64_t{1} << (3 * count)) - 1, p);
    const I spread = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11), bytes);
    return _mm512_shuffle_epi8(spread, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1)));
  }
  // r[i][j] <-> r[j][i] for 16 x 16 words: pairs, quadruples, then 128-bit quarters.
  static void Transpose(I (&r)[16]) {
    I t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int k = 0; k < 4; ++k) {  // r[4 q + k] holds word k of each quarter for images 4 q .. 4 q + 3
      const I low = _mm512_shuffle_i32x4(r[k], r[4 + k], 0x88), low2 = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0x88);
      const I high = _mm512_shuffle_i32x4(r[k], r[4 + k], 0xdd), high2 = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0xdd);
      t[k] = _mm512_shuffle_i32x4(low, low2, 0x88);
      t[8 + k] = _mm512_shuffle_i32x4(low, low2, 0xdd);
      t[4 + k] = _mm512_shuffle_i32x4(high, high2, 0x88);
      t[12 + k] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }

  // Words of one line: to[n] = order[n] < 0 ? padding : from[order[n]], where MergeLanes leaves to[n]. `to` may be `from`.
  struct LaneOrder {
    I lanes;
    __mmask16 moved;
  };
  static LaneOrder LoadLaneOrder(const int32_t* order) {
    const I lanes = _mm512_loadu_si512(order);
    return {lanes, _mm512_cmpge_epi32_mask(lanes, _mm512_setzero_si512())};
  }
  static void MoveLanes(uint8_t* to, const uint8_t* from, const LaneOrder& order, uint32_t padding) {
    StoreI(to, _mm512_mask_permutexvar_epi32(SetI(static_cast<int32_t>(padding)), order.moved, order.lanes, LoadI(from)));
  }
  static void MergeLanes(uint8_t* to, const uint8_t* from, const LaneOrder& order) {
    StoreI(to, _mm512_mask_permutexvar_epi32(LoadI(to), order.moved, order.lanes, LoadI(from)));
  }

  // acc[l] += sum_{j<4} x[l][j] * w[j]; x unsigned bytes, w signed bytes, the same four for every lane. No saturation.
  template <bool kPairsFit>
  static I Dot4(I acc, I x, I w) {
    // Not the intrinsic: GCC 12 copies its accumulators around, half a move per product.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
    return acc;
  }
  static I Broadcast4(const int8_t* w) {
    int32_t v;
    __builtin_memcpy(&v, w, 4);
    return _mm512_set1_epi32(v);
  }
};

}  // namespace hce::avx512vnni
