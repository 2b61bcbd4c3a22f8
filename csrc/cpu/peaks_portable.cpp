// Peak loops of the portable kernels: their own products and sums, on compiler vectors, in blocks of registers that the
// compiler cannot see through.
#include "peaks.h"
#include "simd/portable.h"

namespace hce::portable {
namespace {

constexpr int kPixels = 2, kChannels = 4;  // eight sums, as the kernels have

// The compiler must take the operands as new in every iteration, or it would multiply once and add the product up.
template <class V, int N>
void Touch(V (&values)[N]) { __asm__ volatile("" : "+m"(values)); }

template <class V, class Product>
void Block(int64_t iterations, Product product) {
  V sums[kPixels][kChannels], x[kPixels] = {}, w[kChannels] = {};
  for (auto& of_pixel : sums)
    for (V& sum : of_pixel) sum = V{};
  for (int64_t i = 0; i < iterations; ++i) {
    Touch(x);
    Touch(w);
    // Unrolled on demand, as in the kernels: otherwise the sums stay in memory.
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p) sums[p][c] = product(sums[p][c], x[p], w[c]);
  }
  V used[1] = {};  // not the sums themselves: what Touch names lies in memory
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) used[0] += sums[p][c];
  Touch(used);
}

void F32(int64_t iterations) {
  Block<Simd::F>(iterations, [](Simd::F sum, Simd::F x, Simd::F w) { return Simd::Fma(x, w, sum); });
}
void Dot(int64_t iterations) {
  Block<Simd::I>(iterations, [](Simd::I sum, Simd::I x, Simd::I w) { return Simd::Dot4<true>(sum, x, w); });
}

void Read(const uint8_t* data, int64_t bytes) {
  Simd::I sums[kChannels] = {};
  for (int64_t i = 0; i < bytes; i += 16 * kChannels)
    for (int k = 0; k < kChannels; ++k) sums[k] = Simd::OrI(sums[k], Simd::LoadI(data + i + 16 * k));
  Touch(sums);
}

void Triad(float* a, const float* b, const float* c, int64_t bytes) {
  const Simd::F scale = Simd::Set(3.0f);
  for (int64_t i = 0; i < bytes / 4; i += Simd::kLanes) Simd::Store(a + i, Simd::Fma(scale, Simd::Load(c + i), Simd::Load(b + i)));
}

constexpr PeakLoop kDot = {"shift, mask, multiply, add on 4 x int32", kPixels * kChannels * 4 * Simd::kLanes, Dot};

}  // namespace

const PeakLoops kPeakLoops = {
    {"multiply, add on 4 x float32", kPixels * kChannels * Simd::kLanes, F32}, kDot, kDot, Read, Triad,
};
}  // namespace hce::portable
