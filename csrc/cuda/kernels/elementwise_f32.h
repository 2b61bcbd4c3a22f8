// Additions, copies and flattening on images in lanes, and the mean of members; contracts in ../lanes.h. All are bound
// by memory: a thread moves 4 floats, neighbouring lanes neighbouring ones.
#pragma once
#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

// Position of one piece of 4 floats: pixel (i, j) of a tile, `lane` floats behind its first channel.
struct Piece {
  int tile, i, j, lane;
};

// Calls body(piece) for every piece of `channels` channels of every pixel of a map; the threads of the grid share the
// work.
template <class Context, class Body>
device_function void ForPieces(Context& ctx, int tiles, int h, int w, int channels, const Body& body) {
  const int lanes = channels * kLineLanes;
  const int64_t jobs = static_cast<int64_t>(tiles) * h * w * lanes;
  for (int64_t n = static_cast<int64_t>(ctx.BlockX()) * ctx.Threads() + ctx.Thread(); n < jobs;
       n += static_cast<int64_t>(ctx.BlocksX()) * ctx.Threads()) {
    const int pixel = static_cast<int>(n / lanes), row = pixel / w, tile = row / h;
    body(Piece{tile, row - tile * h, pixel - row * w, static_cast<int>(n - static_cast<int64_t>(pixel) * lanes) * kImages});
  }
}
template <class M>
device_function auto* At(const M& map, const Piece& p, int offset = 0) {
  return map.data + p.tile * map.tile + (p.i * map.row + p.j * map.pixel + p.lane + offset);
}
device_function Float4 Load4(const float* p) { return *reinterpret_cast<const Float4*>(p); }
device_function void Store4(float* p, const Float4& v) { Store(reinterpret_cast<Float4*>(p), v); }

struct AddF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  template <class Context>
  static device_function void Run(Context& ctx, const AddF32Args& a) {
    ForPieces(ctx, a.tiles, a.h, a.w, a.channels, [&](const Piece& p) {
      Float4 v = Load4(At(a.a, p));
      if (a.b.data) {
        const Float4 b = Load4(At(a.b, p));
        v = {Add(v.x, b.x), Add(v.y, b.y), Add(v.z, b.z), Add(v.w, b.w)};
      }
      Store4(At(a.y, p), {Clamp(Mul(v.x, a.scale), a.low, a.high), Clamp(Mul(v.y, a.scale), a.low, a.high),
                          Clamp(Mul(v.z, a.scale), a.low, a.high), Clamp(Mul(v.w, a.scale), a.low, a.high)});
    });
  }
};

struct CopyF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  template <class Context>
  static device_function void Run(Context& ctx, const CopyF32Args& a) {
    // Either the channels to copy alone, or all below zero_to.
    const int first = a.zero_to > 0 ? 0 : a.channel_to, end = a.channel_to + a.channels;
    const int count = (a.zero_to > end ? a.zero_to : end) - first;
    ForPieces(ctx, a.tiles, a.out_h, a.out_w, count, [&](const Piece& p) {
      const int lane = p.lane + (first - a.channel_to) * kTile;  // from the first channel copied
      Float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
      if (lane >= 0 && lane < a.channels * kTile)
        v = Load4(a.x.data + p.tile * a.x.tile +
                  ((a.row_start + p.i * a.row_step) * a.x.row + (a.column_start + p.j * a.column_step) * a.x.pixel + lane));
      Store4(At(a.y, p, first * kTile), v);
    });
  }
};

struct FlattenF32 {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  template <class Context>
  static device_function void Run(Context& ctx, const FlattenF32Args& a) {
    const int64_t features = static_cast<int64_t>(a.channels) * a.h * a.w;
    ForPieces(ctx, a.tiles, a.h, a.w, a.channels, [&](const Piece& p) {
      const int64_t feature = static_cast<int64_t>(p.lane / kTile) * a.h * a.w + p.i * a.w + p.j;
      Store4(a.y + (p.tile * features + feature) * kTile + p.lane % kTile, Load4(At(a.x, p)));
    });
  }
};

struct EnsembleMean {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  template <class Context>
  static device_function void Run(Context& ctx, const EnsembleMeanArgs& a) {
    for (int64_t k = static_cast<int64_t>(ctx.BlockX()) * ctx.Threads() + ctx.Thread(); k < a.elements;
         k += static_cast<int64_t>(ctx.BlocksX()) * ctx.Threads()) {
      float sum = a.members[0][k];
      for (int n = 1; n < a.n; ++n) sum = Add(sum, a.members[n][k]);
      a.out[k] = a.n > 1 ? Mul(sum, a.factor) : sum;
    }
  }
};

}  // namespace hce::cuda
