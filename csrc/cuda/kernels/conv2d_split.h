// Convolution on tensor cores with split operands; contract in ../split.h (ConvSplitArgs).
//
// The products of a step are D (images x outputs) += A (images x terms) B (terms x outputs). Which image is which row of A is
// free; lane 4 g + t has term t (and t + 4) of rows g and g + 8 of two matrices of 16 images, and of a result outputs 2 t and 2
// t + 1 of the same four images: a pair, stored with no exchange between lanes. From a split map these words come as they are,
// 64 bits at a time, in the registers where the mma wants them. From a float map a lane would take its four images from one of
// four lines, and a quarter of a warp would meet in 8 of 32 banks; so each lane loads 16 bytes where neighbours make
// a whole line, and the warp exchanges them.
//
// What a warp loads per step and pixel is the same for every number of outputs: 512 bytes a line, 4 lines in 16 bits, 2 in
// TF32. With N blocks of outputs they feed 6 N products, so N decides whether L1 (128 bytes per cycle) or the tensor cores
// (a product per cycle at most) are the limit.
#pragma once
#include "../split.h"
#include "../warp.h"

namespace hce::cuda {

template <Arithmetic A>
struct SplitArithmetic {
  static constexpr bool kApart = A != Arithmetic::kBf16x3;  // corrections have accumulators of their own
  static constexpr float kCorrection = A == Arithmetic::kFp16x3 ? 0x1p-11f : 1.0f;

  // Two channels of an image as a word of high parts and one of low parts; 16-bit arithmetics.
  static device_function void SplitPair(float even, float odd, uint32_t& high, uint32_t& low) {
    if constexpr (A == Arithmetic::kFp16x3) {
      float even_high, odd_high;
      high = ToHalves(even, odd);
      FromHalves(high, even_high, odd_high);
      low = ToHalves(Mul(Sub(even, even_high), 0x1p11f), Mul(Sub(odd, odd_high), 0x1p11f));
    } else {
      high = ToBfloats(even, odd);
      low = ToBfloats(Sub(even, FromBits(high << 16)), Sub(odd, FromBits(high & 0xffff0000u)));
    }
  }

  // tf32x3. To the nearest in two instructions; a NaN may lose itself in `high`, but stays one in `low`. The mma cuts the bit
  // of `low` that TF32 has no room for.
  static device_function void SplitFloat(float v, uint32_t& high, uint32_t& low) {
    high = (Bits(v) + 0x1000u) & 0xffffe000u;
    low = Bits(Sub(v, FromBits(high)));
  }

  template <class Context>
  static device_function void Mma(Context& ctx, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (A == Arithmetic::kTf32x3)
      MmaTf32(ctx, d, a, b);
    else if constexpr (A == Arithmetic::kFp16x3)
      MmaF16(ctx, d, a, b);
    else
      MmaBf16(ctx, d, a, b);
  }
};

template <Arithmetic A, bool kSplit, int N>
struct Conv2dSplit {
  static constexpr int kThreads = kConvWarps * kWarp;
  // Up to 64 accumulators, 32 words of inputs and as many under way must fit into the 168 registers that these leave.
  static constexpr int kBlocksPerSm = 3;
  static constexpr int P = kSplitPixels[N];
  static constexpr int kSets = SplitArithmetic<A>::kApart ? 2 : 1;
  static constexpr int kLines = HasPairs(A) && !kSplit ? 2 : 1;  // as TermLines()

  // Sums and corrections of 2 x 16 images and 8 outputs, n-th block, p-th pixel.
  using Accumulators = float[kSets][P][N][2][4];

  // Adjacent images of a lane, and the first of run r: a lane has rows of images 4 g to 4 g + 3, or 2 g, 2 g + 1, 16 + 2 g, 17
  // + 2 g.
  static constexpr int kRun = kSplit ? 2 : 4, kRuns = kImages / kRun;
  static device_function int Image(int lane, int run) { return lane / 4 * kRun + 16 * run; }

  // The inputs of a step as fragments of A. From a split map x is the pixel and offset[h] the place of the pair t or t + 4;
  // from a float map x is 4 images of the pixel and offset[h] the places of lines that are terms of lane / 8.
  template <class Context>
  static device_function void Load(Context& ctx, uint32_t (&high)[2][4], uint32_t (&low)[2][4], const float* x,
                                   const int32_t (&offset)[2][kLines]) {
    const int lane = ctx.Lane();
    HCE_UNROLL
    for (int h = 0; h < 2; ++h) {
      if constexpr (kSplit) {
        const float* pair = x + offset[h][0];
        HCE_UNROLL
        for (int m = 0; m < 2; ++m) {
          const float* words = pair + (Image(lane, m) ^ SplitPlace(pair));
          const Float2 of_high = LoadReadOnly(reinterpret_cast<const Float2*>(words));
          const Float2 of_low = LoadReadOnly(reinterpret_cast<const Float2*>(words + kTile));
          high[m][2 * h] = Bits(of_high.x), high[m][2 * h + 1] = Bits(of_high.y);
          low[m][2 * h] = Bits(of_low.x), low[m][2 * h + 1] = Bits(of_low.y);
        }
      } else {
        float v[kLines][kImages];
        HCE_UNROLL
        for (int line = 0; line < kLines; ++line) {
          const Float4 own = LoadReadOnly(reinterpret_cast<const Float4*>(x + offset[h][line]));
          const Float4 four = Shuffle(ctx, own, lane % 4 * kLineLanes + lane / 4);
          v[line][0] = four.x, v[line][1] = four.y, v[line][2] = four.z, v[line][3] = four.w;
        }
        HCE_UNROLL
        for (int k = 0; k < kImages; ++k) {
          uint32_t& to_high = high[k / 2][2 * h + k % 2];
          uint32_t& to_low = low[k / 2][2 * h + k % 2];
          if constexpr (HasPairs(A))
            SplitArithmetic<A>::SplitPair(v[0][k], v[kLines - 1][k], to_high, to_low);
          else
            SplitArithmetic<A>::SplitFloat(v[0][k], to_high, to_low);
        }
      }
    }
  }

  // Adds all products of M <= N blocks of outputs. weight: own words of the first block; table: own offsets of the first step.
  template <int M, class Context>
  static device_function void Steps(Context& ctx, Accumulators& sums, const float* const (&x)[P], const float* weight,
                                    int weight_step, const int32_t* table, int steps) {
    HCE_UNROLL_BY(2)
    for (int step = 0; step < steps; ++step, weight += weight_step, table += 4 * 2 * kLines) {
      int32_t offset[2][kLines];
      HCE_UNROLL
      for (int h = 0; h < 2; ++h) {
        HCE_UNROLL
        for (int line = 0; line < kLines; ++line) offset[h][line] = table[h * kLines + line];
      }
      uint32_t b_high[M][2], b_low[M][2];
      HCE_UNROLL
      for (int n = 0; n < M; ++n) {
        const Float4 words = LoadReadOnly(reinterpret_cast<const Float4*>(weight + n * kWarp * 4));
        b_high[n][0] = Bits(words.x), b_high[n][1] = Bits(words.y);
        b_low[n][0] = Bits(words.z), b_low[n][1] = Bits(words.w);
      }
      HCE_UNROLL
      for (int p = 0; p < P; ++p) {
        uint32_t high[2][4], low[2][4];
        Load(ctx, high, low, x[p], offset);
        HCE_UNROLL
        for (int n = 0; n < M; ++n) {
          HCE_UNROLL
          for (int m = 0; m < 2; ++m) SplitArithmetic<A>::Mma(ctx, sums[kSets - 1][p][n][m], low[m], b_high[n]);
        }
        HCE_UNROLL
        for (int n = 0; n < M; ++n) {
          HCE_UNROLL
          for (int m = 0; m < 2; ++m) SplitArithmetic<A>::Mma(ctx, sums[kSets - 1][p][n][m], high[m], b_low[n]);
        }
        HCE_UNROLL
        for (int n = 0; n < M; ++n) {
          HCE_UNROLL
          for (int m = 0; m < 2; ++m) SplitArithmetic<A>::Mma(ctx, sums[0][p][n][m], high[m], b_high[n]);
        }
      }
    }
  }

  // Where the lines of each step are: table[step][t][term t, term t + 4][line], in floats.
  template <class Context>
  static device_function void FillTable(Context& ctx, const ConvSplitArgs& a, int32_t* table) {
    const int per_tap = a.TapTerms(), terms = a.kernel_h * a.kernel_w * per_tap, count = a.Steps() * kSplitTerms;
    for (int k = ctx.Thread(); k < count; k += ctx.Threads()) {
      const int term = k < terms ? k : 0, tap = term / per_tap, within = term - tap * per_tap;
      const int kh = tap / a.kernel_w, kw = tap - kh * a.kernel_w, t = k % 4, half = k / 4 % 2;
      const int pixel = kh * a.dilation_h * a.x.row + kw * a.dilation_w * a.x.pixel;
      const int line = HasPairs(A) ? 2 * within : within;  // also of a split map
      int32_t* to = table + ((k / kSplitTerms * 4 + t) * 2 + half) * kLines;
      to[0] = pixel + line * kTile;
      // Of an odd number of channels the last stands in for the one that is not there, whose weights are zero.
      if constexpr (kLines == 2) to[1] = pixel + (line + 1 < a.inputs ? line + 1 : line) * kTile;
    }
  }

  template <class Context>
  static device_function void Run(Context& ctx, const ConvSplitArgs& a) {
    int32_t* table = ctx.template Shared<int32_t>();
    FillTable(ctx, a, table);
    ctx.Sync();
    const int warp = ctx.Warp(), pixel_warp = warp / a.config.channel_warps;
    const int block = ctx.BlockY() * a.config.channel_warps + warp - pixel_warp * a.config.channel_warps, blocks = a.Blocks();
    if (block >= blocks) return;
    const int octets = a.Octets(), first = SegmentStart(block, octets, blocks);
    const int count = SegmentStart(block + 1, octets, blocks) - first;
    const int lane = ctx.Lane(), t = lane % 4, steps = a.Steps();
    const float* weight = a.weight + (first * kWarp + lane) * 4;
    const int32_t* own_table = table + (kSplit ? t : lane / kLineLanes) * 2 * kLines;
    const int image = kSplit ? 0 : lane % kLineLanes * kImages;
    const int jobs = a.tiles * a.out_h * a.out_w, stride = ctx.BlocksX() * a.config.pixel_warps * P;
    for (int base = (ctx.BlockX() * a.config.pixel_warps + pixel_warp) * P; base < jobs; base += stride) {
      const float* x[P];
      HCE_UNROLL
      for (int p = 0; p < P; ++p) {
        // Pixels behind the last one repeat it and are not stored.
        const Pixel at(a, base + p < jobs ? base + p : jobs - 1);
        x[p] = a.x.data + at.tile * a.x.tile + (at.i * a.stride_h * a.x.row + at.j * a.stride_w * a.x.pixel + image);
      }
      Accumulators sums{};
      if (count == N)
        Steps<N>(ctx, sums, x, weight, octets * kWarp * 4, own_table, steps);
      else if constexpr (N > 1)
        Steps<N - 1>(ctx, sums, x, weight, octets * kWarp * 4, own_table, steps);
      HCE_UNROLL
      for (int p = 0; p < P; ++p) {
        if (base + p >= jobs) break;
        const Pixel at(a, base + p);
        HCE_UNROLL
        for (int n = 0; n < N; ++n) {
          const int channel = (first + n) * 8 + 2 * t;
          if (n >= count || channel >= a.outputs) break;
          float v[2][kImages];
          HCE_UNROLL
          for (int e = 0; e < 2; ++e) {
            const float bias = channel + e < a.outputs ? LoadReadOnly(a.bias + channel + e) : 0.0f;
            HCE_UNROLL
            for (int k = 0; k < kImages; ++k) {
              float sum = sums[0][p][n][k / 2][k % 2 * 2 + e];
              if constexpr (kSets == 2) sum = Fma(sums[1][p][n][k / 2][k % 2 * 2 + e], SplitArithmetic<A>::kCorrection, sum);
              v[e][k] = Fma(sum, a.factor, bias);
            }
          }
          Finish(a, v, at, channel, lane);
        }
      }
    }
  }

  struct Pixel {
    int tile, i, j;
    device_function Pixel(const ConvSplitArgs& a, int job) {
      const int row = job / a.out_w;
      j = job - row * a.out_w;
      tile = row / a.out_h;
      i = row - tile * a.out_h;
    }
  };

  // Residual, clamp and store of two channels of four images, of which the second may not exist.
  static device_function void Finish(const ConvSplitArgs& a, float (&v)[2][kImages], const Pixel& at, int channel, int lane) {
    const int channels = channel + 1 < a.outputs ? 2 : 1;
    if (a.residual.data) {
      const float* residual =
          a.residual.data + at.tile * a.residual.tile + (at.i * a.residual.row + at.j * a.residual.pixel + channel * kTile);
      HCE_UNROLL
      for (int e = 0; e < 2; ++e) {
        if (e >= channels) break;
        HCE_UNROLL
        for (int run = 0; run < kRuns; ++run) AddRun(v[e] + run * kRun, residual + e * kTile + Image(lane, run));
      }
    }
    HCE_UNROLL
    for (int e = 0; e < 2; ++e) {
      HCE_UNROLL
      for (int k = 0; k < kImages; ++k) v[e][k] = Clamp(v[e][k], a.low, a.high);
    }
    if (a.y.data) {
      float* y = a.y.data + at.tile * a.y.tile + (at.i * a.y.row + at.j * a.y.pixel + channel * kTile);
      HCE_UNROLL
      for (int e = 0; e < 2; ++e) {
        if (e >= channels) break;
        HCE_UNROLL
        for (int run = 0; run < kRuns; ++run) StoreRun(y + e * kTile + Image(lane, run), v[e] + run * kRun);
      }
    }
    if constexpr (HasPairs(A)) {
      if (a.split.data) {
        float* pair = a.split.data + at.tile * a.split.tile + (at.i * a.split.row + at.j * a.split.pixel + channel * kTile);
        float high[kImages], low[kImages];
        HCE_UNROLL
        for (int k = 0; k < kImages; ++k) {
          uint32_t words[2];
          SplitArithmetic<A>::SplitPair(v[0][k], channels == 2 ? v[1][k] : 0.0f, words[0], words[1]);
          high[k] = FromBits(words[0]), low[k] = FromBits(words[1]);
        }
        HCE_UNROLL
        for (int run = 0; run < kRuns; ++run) {
          float* words = pair + (Image(lane, run) ^ SplitPlace(pair));
          StoreRun(words, high + run * kRun);
          StoreRun(words + kTile, low + run * kRun);
        }
      }
    }
  }

  static device_function void AddRun(float* v, const float* from) {
    if constexpr (kRun == 2) {
      const Float2 r = *reinterpret_cast<const Float2*>(from);
      v[0] = Add(v[0], r.x), v[1] = Add(v[1], r.y);
    } else {
      const Float4 r = *reinterpret_cast<const Float4*>(from);
      v[0] = Add(v[0], r.x), v[1] = Add(v[1], r.y), v[2] = Add(v[2], r.z), v[3] = Add(v[3], r.w);
    }
  }
  static device_function void StoreRun(float* to, const float* v) {
    if constexpr (kRun == 2)
      Store(reinterpret_cast<Float2*>(to), {v[0], v[1]});
    else
      Store(reinterpret_cast<Float4*>(to), {v[0], v[1], v[2], v[3]});
  }
};

}  // namespace hce::cuda
