// Float32 convolution on NHWC maps as a matrix product; contract in ../nhwc.h (ConvNhwcF32Args).
//
// A thread block computes M pixels x N channels, a warp 4 TM x 8 TN of them, its lanes standing 4 x 8; a thread has the
// rows lane / 8 + 4 i and, of every 32 columns, four adjacent ones. The inputs of a step lie in shared memory as they
// come from the map, 16 channels of a pixel side by side, the weights as [16][N]. For four channels a thread loads four
// inputs of each of its rows by one 128-bit load, and its weights four columns at a time: TM + TN loads for 4 TM TN
// multiply-adds. A pixel takes 20 floats instead of 16, so that four adjacent ones lie in different banks.
//
// Both operands come by asynchronous copies, the next step while one is computed. A copy of four channels fills up with
// zeros what lies behind the last channel of a group or the last tap, so padding lanes are never looked at. Whole:
// groups begin at multiples of four channels; else channels are copied one by one.
#pragma once
#include "../nhwc.h"
#include "../warp.h"

namespace hce::cuda {

template <int M, int N, int TM, int TN, bool Whole>
struct ConvNhwcF32 {
  static constexpr int kWarpRows = 4 * TM, kWarpColumns = 8 * TN, kWarpsAcross = N / kWarpColumns;
  static constexpr int kThreads = M / kWarpRows * kWarpsAcross * kWarp;
  // Of the 64 k registers of a multiprocessor: TM TN accumulators, 4 TM inputs, TN weights and some 50 more.
  static constexpr int kBlocksPerSm = TM * TN == 64 ? 3 : TM * TN == 32 ? 4 : TM * TN == 16 ? 5 : 6;
  static constexpr int kQuads = kNhwcStep / 4;
  static constexpr int kPitch = kNhwcStep + 4;
  static constexpr int kInputFloats = M * kPitch, kStageFloats = kInputFloats + kNhwcStep * N;
  static constexpr int kRowStep = kThreads / kQuads, kRows = M / kRowStep;  // inputs that a thread copies
  static_assert(M % kWarpRows == 0 && N % kWarpColumns == 0 && M % kRowStep == 0 && M <= kThreads);
  static_assert(kNhwcStep * N / 4 % kThreads == 0);

  // Where a row of the product lies in the maps, in floats; y < 0: it does not exist.
  struct Row {
    int64_t x, y, residual;
  };
  // Stages, rows, and where a block has several segments their running sums.
  static host_device_function int64_t SharedBytes(const ConvNhwcF32Args& a) {
    const bool sums = a.config.segments > 1 && !a.config.parallel;
    return int64_t{2} * kStageFloats * 4 + int64_t{M} * static_cast<int64_t>(sizeof(Row)) +
           (sums ? int64_t{M} * N * 4 : 0);
  }

  // The four input channels of a tap that a thread copies; it moves on by a step at a time.
  struct Quad {
    int kh, kw, c;
    device_function void Start(const ConvNhwcF32Args& a, int quad) {
      const int tap = quad / a.Quads();
      c = quad - tap * a.Quads(), kh = tap / a.kernel_w, kw = tap - kh * a.kernel_w;
    }
    device_function void Next(const ConvNhwcF32Args& a) {
      for (c += kQuads; c >= a.Quads();) {
        c -= a.Quads();
        if (++kw == a.kernel_w) kw = 0, ++kh;
      }
    }
  };

  // Starts the copies of this thread for one step: inputs of the pixels at x, weights at w.
  template <class Context>
  static device_function void Stage(Context& ctx, const ConvNhwcF32Args& a, const float* const (&x)[kRows],
                                    const Quad& at, const float* w, float* to) {
    const int left = at.kh < a.kernel_h ? a.group_inputs - 4 * at.c : 0;
    const int offset = left ? at.kh * a.dilation_h * a.x.row + at.kw * a.dilation_w * a.x.pixel + 4 * at.c : 0;
    float* own = to + ctx.Thread() / kQuads * kPitch + ctx.Thread() % kQuads * 4;
    HCE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if constexpr (Whole) {
        CopyAsync16(own + r * kRowStep * kPitch, x[r] + offset, left < 4 ? left * 4 : 16);
      } else {
        HCE_UNROLL
        for (int e = 0; e < 4; ++e)
          CopyAsync4(own + r * kRowStep * kPitch + e, x[r] + offset + (e < left ? e : 0), e < left ? 4 : 0);
      }
    }
    HCE_UNROLL
    for (int i = 0; i < kNhwcStep * N; i += kThreads * 4)
      CopyAsync16(to + kInputFloats + i + ctx.Thread() * 4, w + i + ctx.Thread() * 4);
    CopyAsyncCommit();
  }

  // acc += one step; x: the first row of this lane, w: its first column.
  static device_function void Multiply(float (&acc)[TM][TN], const float* x, const float* w) {
    HCE_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      float in[TM][4];
      HCE_UNROLL
      for (int i = 0; i < TM; ++i) {
        const Float4 four = *reinterpret_cast<const Float4*>(x + i * 4 * kPitch + q * 4);
        in[i][0] = four.x, in[i][1] = four.y, in[i][2] = four.z, in[i][3] = four.w;
      }
      HCE_UNROLL
      for (int e = 0; e < 4; ++e) {
        float weight[TN];
        HCE_UNROLL
        for (int n = 0; n < TN; n += 4) {
          const Float4 four = *reinterpret_cast<const Float4*>(w + (q * 4 + e) * N + n * 8);
          weight[n] = four.x, weight[n + 1] = four.y, weight[n + 2] = four.z, weight[n + 3] = four.w;
        }
        HCE_UNROLL
        for (int i = 0; i < TM; ++i) {
          HCE_UNROLL
          for (int n = 0; n < TN; ++n) acc[i][n] = Fma(in[i][e], weight[n], acc[i][n]);
        }
      }
    }
  }

  // Four adjacent channels of a pixel, of which `left` exist; whole: they begin at a multiple of four.
  static device_function void Store(const ConvNhwcF32Args& a, const float (&v)[TN], int n, float* y,
                                    const float* residual, int left, bool whole) {
    float out[4] = {v[n], v[n + 1], v[n + 2], v[n + 3]};
    if (whole && left >= 4) {
      if (residual) {
        const Float4 r = *reinterpret_cast<const Float4*>(residual);
        out[0] = Add(out[0], r.x), out[1] = Add(out[1], r.y), out[2] = Add(out[2], r.z), out[3] = Add(out[3], r.w);
      }
      *reinterpret_cast<Float4*>(y) = {Clamp(out[0], a.low, a.high), Clamp(out[1], a.low, a.high),
                                       Clamp(out[2], a.low, a.high), Clamp(out[3], a.low, a.high)};
    } else {
      HCE_UNROLL
      for (int e = 0; e < 4; ++e)
        if (e < left) y[e] = Clamp(residual ? Add(out[e], residual[e]) : out[e], a.low, a.high);
    }
  }

  template <class Context>
  static device_function void Run(Context& ctx, const ConvNhwcF32Args& a) {
    float* stages = ctx.template Shared<float>();
    Row* rows = reinterpret_cast<Row*>(stages + 2 * kStageFloats);
    float* sums = reinterpret_cast<float*>(rows + M) + ctx.Thread();

    const int columns = a.Columns(), block = ctx.BlockY() / columns, column = ctx.BlockY() - block * columns;
    const int segment = block / a.groups, group = block - segment * a.groups;  // the first segment of this block
    const int steps = a.Steps(), parts = a.config.segments;
    const int begin = SegmentStart(segment, steps, parts);
    const int end = a.config.parallel ? SegmentStart(segment + 1, steps, parts) : steps;

    if (ctx.Thread() < M) {
      const int pixels = a.images * a.out_h * a.out_w, pixel = ctx.BlockX() * M + ctx.Thread();
      const int at = pixel < pixels ? pixel : pixels - 1;  // a row that does not exist repeats the last one
      const int line = at / a.out_w, j = at - line * a.out_w, image = line / a.out_h, i = line - image * a.out_h;
      rows[ctx.Thread()] = {image * a.x.tile + (i * a.stride_h * a.x.row + j * a.stride_w * a.x.pixel),
                            pixel < pixels ? image * a.y.tile + (i * a.y.row + j * a.y.pixel) : -1,
                            image * a.residual.tile + (i * a.residual.row + j * a.residual.pixel)};
    }
    ctx.Sync();
    const float* x[kRows];
    HCE_UNROLL
    for (int r = 0; r < kRows; ++r)
      x[r] = a.x.data + rows[ctx.Thread() / kQuads + r * kRowStep].x + group * a.group_inputs;
    const float* w = a.weight + (static_cast<int64_t>(group * columns + column) * steps + begin) * (kNhwcStep * N);
    Quad at;
    at.Start(a, begin * kQuads + ctx.Thread() % kQuads);

    const int lane = ctx.Lane(), warp = ctx.Warp();
    const int first_row = warp / kWarpsAcross * kWarpRows + lane / 8;
    const int first_column = warp % kWarpsAcross * kWarpColumns + lane % 8 * 4;
    const int before = column * N + first_column;  // outputs of the group in front of those of this lane
    const int channel = group * a.group_outputs + before, left = a.group_outputs - before;

    float acc[TM][TN];
    HCE_UNROLL
    for (int n = 0; n < TN; ++n) {
      const int behind = n / 4 * 32 + n % 4;
      const float bias = segment == 0 && behind < left ? LoadReadOnly(a.bias + channel + behind) : 0.0f;
      HCE_UNROLL
      for (int i = 0; i < TM; ++i) acc[i][n] = bias;
    }

    int step = begin, current = 0;
    Stage(ctx, a, x, at, w, stages);
    for (int part = segment; step < end; ++part) {
      const int part_end = SegmentStart(part + 1, steps, parts);
      for (; step < part_end; ++step) {
        CopyAsyncWait<0>();
        ctx.Sync();  // the step is there for all, and nobody reads the other stage any more
        if (step + 1 < end) {
          at.Next(a);
          w += kNhwcStep * N;
          Stage(ctx, a, x, at, w, stages + (current ^ 1) * kStageFloats);
        }
        const float* stage = stages + current * kStageFloats;
        Multiply(acc, stage + first_row * kPitch, stage + kInputFloats + first_column);
        current ^= 1;
      }
      if (a.config.parallel || parts == 1) break;
      HCE_UNROLL
      for (int i = 0; i < TM; ++i) {
        HCE_UNROLL
        for (int n = 0; n < TN; ++n) {
          float* sum = sums + (i * TN + n) * kThreads;
          if (part) acc[i][n] = Add(*sum, acc[i][n]);
          if (step < end) *sum = acc[i][n], acc[i][n] = 0.0f;
        }
      }
    }

    const bool whole = a.groups == 1 || a.group_outputs % 4 == 0;
    const int to = channel + (a.config.parallel ? segment * a.SegmentFloats() : 0);
    HCE_UNROLL
    for (int i = 0; i < TM; ++i) {
      const Row row = rows[first_row + 4 * i];
      if (row.y < 0) continue;
      HCE_UNROLL
      for (int n = 0; n < TN; n += 4)
        Store(a, acc[i], n, a.y.data + row.y + to + n * 8,
              a.residual.data ? a.residual.data + row.residual + channel + n * 8 : nullptr, left - n * 8, whole);
    }
  }
};

}  // namespace hce::cuda
