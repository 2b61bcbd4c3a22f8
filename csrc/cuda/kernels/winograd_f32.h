// Winograd F(2x2, 3x3) and F(4x4, 3x3) on images in lanes (Lavin and Gray, arXiv 1509.09308); contract in ../lanes.h
// (WinogradF32Args).
//
// With one image per lane a transform is scalar arithmetic, no shuffles. A thread block takes a few tiles of pixels and
//   1. transforms a chunk of input channels: a warp a channel of a tile, a lane an image; V goes to shared memory;
//   2. multiplies: a warp takes four frequencies, a lane 4 images x S tiles x O outputs of one of them, in registers;
//   3. puts the products where V was, and transforms them: a warp an output of a tile, a lane an image; bias, residual, clamp.
// Step 2 is a product of matrices, so its weights are shared by the images and its inputs by the outputs; with V or with the
// products of all frequencies in registers, one weight read would serve one multiply-add.
//
// Arithmetic of a tile of m x m pixels of 32 images, C -> K channels, in instructions of a warp, and its share of that of direct
// convolution, 9 C K m^2:
//
//             multiply-adds   transforms        9 -> 9   16 -> 16   32 -> 32
//   F(2x2)    16 C K          32 C + 24 K       62 %     54 %       49 %
//   F(4x4)    36 C K          144 C + 100 K     44 %     36 %       30 %
//
// Where outputs are more than one thread block's, the input transform is repeated by each.
//
// Shared memory, in reads or writes of 128 bytes: V is written once, F C with F = (m + 2)^2, and read by each block of outputs,
// F C K / O; the products are written and read, 2 F K; and a 128-bit read of four weights, which is the same for 8 lanes, serves
// 16 S multiply-adds of a warp. At 16 -> 16 that is about as long as the arithmetic for F(4x4), longer for F(2x2), whose
// products are 8 words per output instead of 4.5. So F(4x4) is the faster one where a map fills its tiles; F(2x2) has the
// smaller error, and smaller tiles.
//
// Transforms are issued as 313 instructions (F(4x4)) and 106 per input, 297 and 106 per output, 384 and 138 with a residual; addresses
// and the clamp are most of what is not arithmetic. hce_engine/plan/cuda/winograd_select.py plans with these counts.
//
// Registers: 4 S O accumulators. 18 warps of a block, 5 on one quarter of a multiprocessor, leave 96 registers to a thread of
// F(4x4); with V's 36 values under way beside them there is room for 44 (S = 1), and for 72 where no sum waits while V is
// made, because all input channels are one chunk (S = 2). F(2x2) has 16 warps and 128 registers.
#pragma once
#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

// The transforms of one tile in one dimension, for m outputs. InputRow: B^T d. OutputRow: A^T m. InputTile: B^T d B of the
// pixels load(row, column), frequency (p, q) given to store(p, q, value).
template <int M>
struct WinogradTransform;

template <>
struct WinogradTransform<2> {
  static device_function void InputRow(const float (&d)[4], float (&v)[4]) {
    v[0] = Sub(d[0], d[2]), v[1] = Add(d[1], d[2]), v[2] = Sub(d[2], d[1]), v[3] = Sub(d[1], d[3]);
  }
  static device_function void OutputRow(const float (&m)[4], float (&y)[2]) {
    y[0] = Add(m[0], Add(m[1], m[2])), y[1] = Sub(Sub(m[1], m[2]), m[3]);
  }
  template <class Load, class Store>
  static device_function void InputTile(const Load& load, const Store& store) {
    float d[4][4], v[4][4];
    HCE_UNROLL
    for (int p = 0; p < 4; ++p) {
      HCE_UNROLL
      for (int q = 0; q < 4; ++q) d[p][q] = load(p, q);
    }
    HCE_UNROLL
    for (int q = 0; q < 4; ++q) {
      const float column[4] = {d[0][q], d[1][q], d[2][q], d[3][q]};
      float r[4];
      InputRow(column, r);
      HCE_UNROLL
      for (int p = 0; p < 4; ++p) v[p][q] = r[p];
    }
    HCE_UNROLL
    for (int p = 0; p < 4; ++p) StoreRow(v[p], p, store);
  }

 private:
  template <class Store>
  static device_function void StoreRow(const float (&d)[4], int p, const Store& store) {
    float v[4];
    InputRow(d, v);
    HCE_UNROLL
    for (int q = 0; q < 4; ++q) store(p, q, v[q]);
  }
};

// The operations of the CPU's kernel, in its order.
template <>
struct WinogradTransform<4> {
  static device_function void InputRow(const float (&d)[6], float (&v)[6]) {
    v[0] = Outer(d[0], d[2], d[4]);
    v[1] = d[1], v[2] = d[2], v[3] = d[3], v[4] = d[4];
    Inner(v[1], v[2], v[3], v[4]);
    v[5] = Outer(d[1], d[3], d[5]);
  }
  static device_function void OutputRow(const float (&m)[6], float (&y)[4]) {
    const float s1 = Add(m[1], m[2]), d1 = Sub(m[1], m[2]), s2 = Add(m[3], m[4]), d2 = Sub(m[3], m[4]);
    y[0] = Add(m[0], Add(s1, s2));
    y[1] = Fma(2.0f, d2, d1);
    y[2] = Fma(4.0f, s2, s1);
    y[3] = Add(m[5], Fma(8.0f, d2, d1));
  }
  // Frequency rows 0 and 5 first, each from three of the pixel rows: so at most 30 values are held at a time instead of 36,
  // beside the accumulators of the chunks before.
  template <class Load, class Store>
  static device_function void InputTile(const Load& load, const Store& store) {
    float d1[6], d2[6], d3[6], d4[6], r[6];
    HCE_UNROLL
    for (int q = 0; q < 6; ++q) d2[q] = load(2, q), d4[q] = load(4, q), r[q] = Outer(load(0, q), d2[q], d4[q]);
    StoreRow(r, 0, store);
    HCE_UNROLL
    for (int q = 0; q < 6; ++q) d1[q] = load(1, q), d3[q] = load(3, q), r[q] = Outer(d1[q], d3[q], load(5, q));
    StoreRow(r, 5, store);
    HCE_UNROLL
    for (int q = 0; q < 6; ++q) Inner(d1[q], d2[q], d3[q], d4[q]);
    StoreRow(d1, 1, store);
    StoreRow(d2, 2, store);
    StoreRow(d3, 3, store);
    StoreRow(d4, 4, store);
  }

 private:
  static device_function float Outer(float a, float b, float c) { return Fma(4.0f, a, Fma(-5.0f, b, c)); }
  static device_function void Inner(float& a, float& b, float& c, float& d) {
    const float t0 = Fma(-4.0f, b, d), t1 = Fma(-4.0f, a, c), t2 = Sub(d, b), t3 = Sub(c, a);
    a = Add(t0, t1), b = Sub(t0, t1), c = Fma(2.0f, t3, t2), d = Fma(-2.0f, t3, t2);
  }
  template <class Store>
  static device_function void StoreRow(const float (&d)[6], int p, const Store& store) {
    float v[6];
    InputRow(d, v);
    HCE_UNROLL
    for (int q = 0; q < 6; ++q) store(p, q, v[q]);
  }
};

// n / divisor for 0 <= n < 2^31 without a division (Granlund and Montgomery, 1994): with 2^(l - 1) < divisor <= 2^l,
// (n * ceil(2^(31 + l) / divisor)) >> (31 + l).
struct Divider {
  uint32_t factor;
  int32_t shift;
  explicit Divider(int divisor) : shift(31) {
    while ((int64_t{1} << (shift - 31)) < divisor) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + static_cast<uint32_t>(divisor) - 1) / static_cast<uint32_t>(divisor));
  }
  device_function int operator()(int n) const {
    return static_cast<int>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor) >> shift);
  }
};

// What a kernel is given: its arguments, and what is the same for all threads and would cost them divisions, multiplications
// or registers. The offsets of a tile's pixels are operands in constant memory this way.
struct WinogradWork {
  WinogradF32Args a;
  int32_t jobs, rows, columns;        // tiles of pixels: of all maps, of one
  Divider by_rows, by_columns;
  int32_t blocks, larger_blocks;      // of outputs: all, those of O channels; the others have one less
  int32_t products, lines;            // outputs of a thread block; channels of V or products for which it has memory
  int32_t chunks, u_offset;           // u_offset: floats of shared memory before U
  int64_t x[36], residual[16], y[16];  // bytes from the first pixel of a tile to pixel (p, q)

  explicit WinogradWork(const WinogradF32Args& args)
      : a(args), rows(args.TileRows()), columns(args.TileColumns()), by_rows(rows), by_columns(columns) {
    const int m = a.config.output, side = m + 2;
    jobs = a.tiles * rows * columns;
    blocks = a.Blocks(), larger_blocks = a.outputs - blocks * (a.config.channels - 1), chunks = a.Chunks();
    for (int p = 0; p < side; ++p)
      for (int q = 0; q < side; ++q) x[p * side + q] = (int64_t{p} * a.x.row + q * a.x.pixel) * 4;
    for (int p = 0; p < m; ++p)
      for (int q = 0; q < m; ++q) {
        residual[p * m + q] = (int64_t{p} * a.residual.row + q * a.residual.pixel) * 4;
        y[p * m + q] = (int64_t{p} * a.y.row + q * a.y.pixel) * 4;
      }
    products = a.config.channel_groups * a.config.channels;
    lines = products > a.config.chunk ? products : a.config.chunk;
    u_offset = a.config.tile_groups * lines * ChannelFloats();
  }
  int ChannelFloats() const { return Frequencies() * a.config.tiles * kTile; }
  int Frequencies() const { return (a.config.output + 2) * (a.config.output + 2); }
  int64_t SharedFloats() const {
    return u_offset + int64_t{a.config.channel_groups} * a.config.chunk * Frequencies() * RoundUp4(a.config.channels);
  }
};

template <int M, int S, int O>
struct WinogradF32 {
  static constexpr int kSide = M + 2, kFrequencies = kSide * kSide;
  static constexpr int kGroupWarps = kFrequencies / 4;  // a warp multiplies four frequencies
  static constexpr int kMostGroups = kWinogradGroups[M];
  static constexpr int kThreads = kMostGroups * kGroupWarps * kWarp;
  static constexpr int kBlocksPerSm = 1;
  static constexpr int kStride = RoundUp4(O);
  static constexpr int kPlane = S * kTile;                // floats of one frequency of one channel
  static constexpr int kChannel = kFrequencies * kPlane;  // of one channel, transformed
  static constexpr int kWeights = kFrequencies * kStride;  // of one channel, of one block of outputs
  static constexpr int kUnroll = O * S > 12 ? 1 : 2;
  using Transform = WinogradTransform<M>;
  using Accumulators = float[O][S][kImages];

  static device_function const float* Offset(const float* p, int64_t bytes) {
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(p) + bytes);
  }
  static device_function float* Offset(float* p, int64_t bytes) {
    return reinterpret_cast<float*>(reinterpret_cast<char*>(p) + bytes);
  }

  // Where tile number `job` of pixels lies. The last ones of a map whose size is no multiple of M begin earlier, so that they
  // end with the map; of their output pixels, `skip_rows` and `skip_columns` are those of another tile, which stores them.
  struct Place {
    int tile, i, j, skip_rows, skip_columns;
    device_function Place(const WinogradWork& work, int job) {
      const int row_job = work.by_columns(job);
      tile = work.by_rows(row_job);
      i = (row_job - tile * work.rows) * M, j = (job - row_job * work.columns) * M;
      const int rows = i + M - work.a.out_h, columns = j + M - work.a.out_w;
      skip_rows = rows > 0 ? rows : 0, skip_columns = columns > 0 ? columns : 0;
      i -= skip_rows, j -= skip_columns;
    }
  };

  // What a lane multiplies: a block of outputs; where it finds V and U and leaves its products, in floats. Asked for anew in each
  // phase, because registers that hold it through the others are missing there.
  struct Share {
    int block, v, u, m;
    template <class Context>
    device_function Share(Context& ctx, const WinogradWork& work) {
      const WinogradConfig& c = work.a.config;
      const int warp = ctx.Warp(), lane = ctx.Lane(), quad = lane / kLineLanes;
      const int groups = warp / kGroupWarps, quads = warp - groups * kGroupWarps;
      int tile_group = 0;  // groups / channel_groups, without a division
      HCE_UNROLL
      for (int n = 1; n < kMostGroups; ++n) tile_group += groups >= n * c.channel_groups;
      const int group = groups - tile_group * c.channel_groups;
      block = ctx.BlockY() * c.channel_groups + group;
      v = tile_group * work.lines * kChannel + (quads * 4 + quad) * kPlane + lane % kLineLanes * kImages;
      u = group * c.chunk * kWeights + quads * 4 * kStride + quad * 4;
      m = v + group * O * kChannel;
    }
  };

  // Starts copying the weights of channels [begin, begin + channels) to u.
  template <class Context>
  static device_function void Stage(Context& ctx, const WinogradWork& work, int begin, int channels, float* u) {
    const WinogradF32Args& a = work.a;
    const int count = channels * kWeights;
    for (int g = 0; g < a.config.channel_groups; ++g) {
      const int block = ctx.BlockY() * a.config.channel_groups + g;
      if (block >= work.blocks) break;
      const float* from = a.weight + (static_cast<int64_t>(block) * a.inputs + begin) * kWeights;
      float* own = u + g * a.config.chunk * kWeights;
      for (int n = ctx.Thread() * 4; n < count; n += ctx.Threads() * 4) CopyAsync16(own + n, from + n);
    }
    CopyAsyncCommit();
  }

  // V of channels [begin, begin + channels); a warp takes a channel of a tile at a time, a lane an image.
  template <class Context>
  static device_function void TransformInputs(Context& ctx, const WinogradWork& work, int base, int begin, int channels,
                                              float* v) {
    const WinogradF32Args& a = work.a;
    const int warps = ctx.Warps(), lane = ctx.Lane();
    int c = ctx.Warp();
    for (int n = 0; n < a.config.tile_groups * S && base + n < work.jobs; ++n, c -= channels) {
      if (c >= channels) continue;
      const Place at(work, base + n);
      float* tile = v + n / S * work.lines * kChannel + n % S * kTile + lane;
      const float* x = a.x.data + at.tile * a.x.tile + (at.i * a.x.row + at.j * a.x.pixel + begin * kTile + lane);
      for (; c < channels; c += warps) {
        const float* from = x + c * kTile;
        float* to = tile + c * kChannel;
        Transform::InputTile([&](int p, int q) { return LoadReadOnly(Offset(from, work.x[p * kSide + q])); },
                             [to](int p, int q, float value) { to[(p * kSide + q) * kPlane] = value; });
      }
    }
  }

  // acc[o] += V U over `channels` channels, for the frequency and the images of this lane.
  template <int Count>
  static device_function void Multiply(Accumulators& acc, const float* v, const float* u, int channels) {
    HCE_UNROLL_BY(kUnroll)
    for (int c = 0; c < channels; ++c) {
      float in[S][kImages];
      HCE_UNROLL
      for (int s = 0; s < S; ++s) {
        const Float4 four = *reinterpret_cast<const Float4*>(v + s * kTile);
        in[s][0] = four.x, in[s][1] = four.y, in[s][2] = four.z, in[s][3] = four.w;
      }
      HCE_UNROLL
      for (int first = 0; first < Count; first += 4) {
        const Float4 four = *reinterpret_cast<const Float4*>(u + first * 4);
        const float weight[4] = {four.x, four.y, four.z, four.w};
        HCE_UNROLL
        for (int o = first; o < first + 4 && o < Count; ++o) {
          HCE_UNROLL
          for (int s = 0; s < S; ++s) {
            HCE_UNROLL
            for (int n = 0; n < kImages; ++n) acc[o][s][n] = Fma(in[s][n], weight[o - first], acc[o][s][n]);
          }
        }
      }
      v += kChannel;
      u += kWeights;
    }
  }

  // Output pixels of one tile and channel from its products m; a lane is an image. kWhole: the tile skips nothing.
  template <bool kResidual, bool kWhole>
  static device_function void TransformOutputs(const WinogradWork& work, const Place& at, int channel, int lane,
                                               const float* m) {
    const WinogradF32Args& a = work.a;
    const int i = at.i, j = at.j, line = channel * kTile + lane;
    const float* residual = a.residual.data + at.tile * a.residual.tile + (i * a.residual.row + j * a.residual.pixel + line);
    // Of a row before the row above it is written: the compiler cannot know that to be elsewhere.
    [[maybe_unused]] float add[2][M];
    const auto load = [&](int p) {
      if constexpr (kResidual) {
        HCE_UNROLL
        for (int q = 0; q < M; ++q) add[p % 2][q] = *Offset(residual, work.residual[p * M + q]);
      }
    };
    load(0);
    const float bias = LoadReadOnly(a.bias + channel);
    float half[M][kSide];
    HCE_UNROLL
    for (int q = 0; q < kSide; ++q) {
      float column[kSide], r[M];
      HCE_UNROLL
      for (int p = 0; p < kSide; ++p) column[p] = m[(p * kSide + q) * kPlane];
      Transform::OutputRow(column, r);
      HCE_UNROLL
      for (int p = 0; p < M; ++p) half[p][q] = r[p];
    }
    float* y = a.y.data + at.tile * a.y.tile + (i * a.y.row + j * a.y.pixel + line);
    HCE_UNROLL
    for (int p = 0; p < M; ++p) {
      if (p + 1 < M) load(p + 1);
      float r[M];
      Transform::OutputRow(half[p], r);
      HCE_UNROLL
      for (int q = 0; q < M; ++q) {
        float value = Add(r[q], bias);
        if constexpr (kResidual) value = Add(value, add[p % 2][q]);
        if (kWhole || (p >= at.skip_rows && q >= at.skip_columns)) *Offset(y, work.y[p * M + q]) = Clamp(value, a.low, a.high);
      }
    }
  }
  // The outputs of one tile, `slot` and every further one of this warp, from the products m of all.
  template <bool kResidual, bool kWhole, class Context>
  static device_function int TransformTile(Context& ctx, const WinogradWork& work, const Place& at, int slot, const float* m) {
    const int warps = ctx.Warps(), lane = ctx.Lane(), first_block = ctx.BlockY() * work.a.config.channel_groups;
    for (; slot < work.products; slot += warps) {
      const int g = slot / O, o = slot - g * O, from = first_block + g;
      const int channel = from * (O - 1) + (from < work.larger_blocks ? from : work.larger_blocks) + o;
      if (from < work.larger_blocks || (from < work.blocks && o < O - 1))
        TransformOutputs<kResidual, kWhole>(work, at, channel, lane, m + slot * kChannel);
    }
    return slot;
  }

  template <class Context>
  static device_function void Run(Context& ctx, const WinogradWork& work) {
    const WinogradF32Args& a = work.a;
    float* v = ctx.template Shared<float>();  // [tile group][channel of the chunk, or output][frequency][S][32]
    float* u = v + work.u_offset;             // [channel group][channel of the chunk][kWeights]
    const int chunks = S == 1 ? work.chunks : 1, tiles = a.config.tile_groups * S, step = ctx.BlocksX() * tiles;
    for (int base = ctx.BlockX() * tiles; base < work.jobs; base += step) {
      Accumulators acc = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int begin = chunk * a.config.chunk, left = a.inputs - begin;
        const int channels = left < a.config.chunk ? left : a.config.chunk;
        ctx.Sync();  // nobody reads shared memory any more
        if (chunks > 1 || base < step) Stage(ctx, work, begin, channels, u);
        TransformInputs(ctx, work, base, begin, channels, v);
        CopyAsyncWait<0>();
        ctx.Sync();  // V and U are there for all
        const Share share(ctx, work);
        if (share.block < work.larger_blocks)
          Multiply<O>(acc, v + share.v, u + share.u, channels);
        else if constexpr (O > 1)
          if (share.block < work.blocks) Multiply<O - 1>(acc, v + share.v, u + share.u, channels);
      }
      ctx.Sync();  // V is read
      const Share share(ctx, work);
      if (share.block < work.blocks) {
        float* m = v + share.m;
        HCE_UNROLL
        for (int o = 0; o < O; ++o) {
          HCE_UNROLL
          for (int s = 0; s < S; ++s) {
            const float* r = acc[o][s];
            *reinterpret_cast<Float4*>(m + o * kChannel + s * kTile) = {r[0], r[1], r[2], r[3]};
          }
        }
      }
      ctx.Sync();  // the products are there for all
      int slot = ctx.Warp();
      for (int n = 0; n < tiles && base + n < work.jobs; ++n, slot -= work.products) {
        if (slot >= work.products) continue;
        const Place at(work, base + n);
        const float* m = v + n / S * work.lines * kChannel + n % S * kTile + ctx.Lane();
        const bool whole = (at.skip_rows | at.skip_columns) == 0;
        if (a.residual.data)
          slot = whole ? TransformTile<true, true>(ctx, work, at, slot, m) : TransformTile<true, false>(ctx, work, at, slot, m);
        else
          slot = whole ? TransformTile<false, true>(ctx, work, at, slot, m) : TransformTile<false, false>(ctx, work, at, slot, m);
      }
    }
  }
};

}  // namespace hce::cuda
