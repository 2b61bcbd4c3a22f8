// Direct float32 convolution on images in lanes; contract in ../lanes.h (ConvF32Args).
//
// Register tile of a thread: P adjacent output pixels x O output channels x 4 images. For each line (tap, input
// channel) it loads P times four inputs, each by one 128-bit load (eight lanes make a line), and O weights from shared
// memory, four at a time and the same for all lanes (a broadcast). With P = 2 and O = 8 that is 64 fused multiply-adds
// beside 4 loads. One image per thread and P = 8 would be the same tile and the same bytes, but 10 loads and 8
// addresses; instructions that are not multiply-adds are what limits this kernel.
//
// The order of a sum (kernel row, kernel column, channel) is that of the CPU kernels. It forgoes keeping a row of
// inputs in registers for the taps of that row; those loads come from L1, where the warps of a block that compute other
// outputs of the same pixels find them too.
#pragma once
#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

constexpr int kConvRuns = kWarp / kLineLanes;  // runs of pixels that a warp computes at a time

// acc[p][o] += lines [begin, end) of one block of O outputs; w points at line `begin` in shared memory, Stride floats
// per line. x[p]: pixel p at tap (0, 0), first input channel, the images of this lane.
template <int P, int O, int Stride, int Width>
device_function void ConvLines(float (&acc)[P][Width][kImages], const ConvF32Args& a, const float* const (&x)[P],
                               const float* w, int begin, int end) {
  // Lines per round of the loop: more spread the addresses and the branch, but their inputs need registers.
  [[maybe_unused]] constexpr int kLines = P * Width <= (P == 1 ? 12 : 20) ? 4 : 2;
  const int tap = begin / a.group_inputs;
  int c = begin - tap * a.group_inputs, kh = tap / a.kernel_w, kw = tap - kh * a.kernel_w;
  for (int line = begin; line < end;) {
    const int left = end - line, run = a.group_inputs - c < left ? a.group_inputs - c : left;
    const int offset = kh * a.dilation_h * a.x.row + kw * a.dilation_w * a.x.pixel + c * kTile;
    const Float4* in[P];
    HCE_UNROLL
    for (int p = 0; p < P; ++p) in[p] = reinterpret_cast<const Float4*>(x[p] + offset);
    HCE_UNROLL_BY(kLines)
    for (int k = 0; k < run; ++k) {
      float v[P][kImages], weight[Stride];
      HCE_UNROLL
      for (int p = 0; p < P; ++p) {
        const Float4 four = LoadReadOnly(in[p]);
        v[p][0] = four.x, v[p][1] = four.y, v[p][2] = four.z, v[p][3] = four.w;
        in[p] += kLineLanes;
      }
      HCE_UNROLL
      for (int o = 0; o < Stride; o += 4) {
        const Float4 four = *reinterpret_cast<const Float4*>(w + o);
        weight[o] = four.x, weight[o + 1] = four.y, weight[o + 2] = four.z, weight[o + 3] = four.w;
      }
      w += Stride;
      HCE_UNROLL
      for (int o = 0; o < O; ++o) {
        HCE_UNROLL
        for (int p = 0; p < P; ++p) {
          HCE_UNROLL
          for (int n = 0; n < kImages; ++n) acc[p][o][n] = Fma(v[p][n], weight[o], acc[p][o][n]);
        }
      }
    }
    line += run;
    c = 0;
    if (++kw == a.kernel_w) kw = 0, ++kh;
  }
}

template <int P, int O>
struct Conv2dF32 {
  static constexpr int kThreads = kConvWarps * kWarp;
  // 4 P O accumulators and up to 90 registers more must fit into the 128 or 168 of a thread that these leave.
  static constexpr int kBlocksPerSm = P == 1 || O < 7 ? 4 : 3;
  static constexpr int kStride = RoundUp4(O);

  // Starts copying chunk `chunk` of the weights of this thread block to `to`.
  template <class Context>
  static device_function void Stage(Context& ctx, const ConvF32Args& a, int chunk, float* to) {
    const int lines = a.Lines(), begin = chunk * a.config.chunk_lines, left = lines - begin;
    const int count = (left < a.config.chunk_lines ? left : a.config.chunk_lines) * kStride;
    const int blocks = a.groups * a.GroupBlocks();
    for (int n = 0; n < a.config.channel_warps; ++n) {
      const int block = ctx.BlockY() * a.config.channel_warps + n;
      if (block >= blocks) break;
      const float* from = a.weight + (static_cast<int64_t>(block) * lines + begin) * kStride;
      float* own = to + n * a.config.chunk_lines * kStride;
      for (int i = ctx.Thread() * 4; i < count; i += ctx.Threads() * 4) CopyAsync16(own + i, from + i);
    }
    CopyAsyncCommit();
  }

  template <class Context>
  static device_function void Run(Context& ctx, const ConvF32Args& a) {
    float* buffer = ctx.template Shared<float>();
    const int warp = ctx.Warp(), pixel_warp = warp / a.config.channel_warps;
    const int channel_warp = warp - pixel_warp * a.config.channel_warps;
    const int block = ctx.BlockY() * a.config.channel_warps + channel_warp;
    const int group_blocks = a.GroupBlocks(), group = block / group_blocks, within = block - group * group_blocks;
    const bool has_channels = group < a.groups;
    const int start = SegmentStart(within, a.group_outputs, group_blocks);
    const int count = SegmentStart(within + 1, a.group_outputs, group_blocks) - start;
    const int channel = group * a.group_outputs + start;
    const int image = ctx.Lane() % kLineLanes * kImages;

    const int lines = a.Lines(), chunks = a.Chunks(), segments = a.Segments();
    const int jobs = a.tiles * a.out_h * segments, step = ctx.BlocksX() * a.config.pixel_warps * kConvRuns;
    int current = 0;  // buffer in use
    Stage(ctx, a, 0, buffer);
    for (int base = ctx.BlockX() * a.config.pixel_warps * kConvRuns; base < jobs; base += step) {
      const int first_job = base + pixel_warp * kConvRuns, own_job = first_job + ctx.Lane() / kLineLanes;
      const bool active = has_channels && first_job < jobs;
      // Lanes without a job repeat the last one and store nothing.
      const int job = own_job < jobs ? own_job : jobs - 1;
      const int row_job = job / segments, segment = job - row_job * segments;
      const int tile = row_job / a.out_h, i = row_job - tile * a.out_h;
      const int j = SegmentStart(segment, a.out_w, segments), j_end = SegmentStart(segment + 1, a.out_w, segments);
      const float* x[P];
      HCE_UNROLL
      for (int p = 0; p < P; ++p)
        x[p] = a.x.data + tile * a.x.tile +
               (i * a.stride_h * a.x.row + (j + p < j_end ? j + p : j) * a.stride_w * a.x.pixel +
                group * a.group_inputs * kTile + image);

      float acc[P][O][kImages];
      HCE_UNROLL
      for (int o = 0; o < O; ++o) {
        const float bias = active && o < count ? LoadReadOnly(a.bias + channel + o) : 0.0f;
        HCE_UNROLL
        for (int p = 0; p < P; ++p) {
          HCE_UNROLL
          for (int n = 0; n < kImages; ++n) acc[p][o][n] = bias;
        }
      }
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const bool resident = chunks == 1;
        if (!resident || base < step) {
          CopyAsyncWait<0>();
          ctx.Sync();  // the chunk is there for all, and nobody reads the other buffer any more
          if (!resident && (chunk + 1 < chunks || base + step < jobs))
            Stage(ctx, a, chunk + 1 < chunks ? chunk + 1 : 0, buffer + (current ^ 1) * a.ChunkFloats());
        }
        if (active) {
          const int begin = chunk * a.config.chunk_lines, rest = lines - begin;
          const int end = begin + (rest < a.config.chunk_lines ? rest : a.config.chunk_lines);
          const float* w = buffer + current * a.ChunkFloats() + channel_warp * a.config.chunk_lines * kStride;
          if (count == O)
            ConvLines<P, O, kStride>(acc, a, x, w, begin, end);
          else if constexpr (O > 1)
            ConvLines<P, O - 1, kStride>(acc, a, x, w, begin, end);
        }
        if (!resident) current ^= 1;
      }
      if (!active || own_job >= jobs) continue;
      const int line = channel * kTile + image;
      float* y = a.y.data + tile * a.y.tile + (i * a.y.row + j * a.y.pixel + line);
      const float* residual = nullptr;
      if (a.residual.data)
        residual = a.residual.data + tile * a.residual.tile + (i * a.residual.row + j * a.residual.pixel + line);
      HCE_UNROLL
      for (int p = 0; p < P; ++p) {
        if (j + p >= j_end) break;
        HCE_UNROLL
        for (int o = 0; o < O; ++o) {
          if (o >= count) break;
          float* v = acc[p][o];
          if (residual) {
            const Float4 r = *reinterpret_cast<const Float4*>(residual + p * a.residual.pixel + o * kTile);
            v[0] = Add(v[0], r.x), v[1] = Add(v[1], r.y), v[2] = Add(v[2], r.z), v[3] = Add(v[3], r.w);
          }
          *reinterpret_cast<Float4*>(y + p * a.y.pixel + o * kTile) = {
              Clamp(v[0], a.low, a.high), Clamp(v[1], a.low, a.high), Clamp(v[2], a.low, a.high),
              Clamp(v[3], a.low, a.high)};
        }
      }
    }
    CopyAsyncWait<0>();  // of a block without a job
  }
};

}  // namespace hce::cuda
