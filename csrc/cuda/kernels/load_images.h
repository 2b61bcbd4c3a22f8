// Images into lanes, normalised; contract in ../lanes.h (LoadImagesArgs).
//
// An image is contiguous in memory, a line holds one value of 32 images: a transpose. A thread block takes kChunk
// values of the 32 images of a tile, reads them image by image, 128 bytes a warp, and writes them line by line, 128
// bytes a warp. In between they lie in shared memory, 33 words per image instead of 32, so that neither side has bank
// conflicts.
#pragma once
#include "../lanes.h"
#include "../warp.h"

namespace hce::cuda {

struct LoadImages {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
  static constexpr int kWords = 32;           // staged per image: 32 floats, or 128 bytes
  static constexpr int kPitch = kWords + 1;
  static constexpr int64_t kSharedBytes = int64_t{kTile} * kPitch * 4;

  static host_device_function int64_t Jobs(const LoadImagesArgs& a) {
    const int values = a.h * a.w * a.c;
    return static_cast<int64_t>(CeilDiv(a.count, kTile)) * CeilDiv(values, a.from_float ? kWords : kWords * 4);
  }

  // Four bytes of one image from value e on, the first lowest. An image may begin at any address.
  static device_function uint32_t Bytes(const uint8_t* image, int e, int values, bool aligned) {
    if (aligned) return *reinterpret_cast<const uint32_t*>(image + e);
    uint32_t word = 0;
    for (int b = 0; b < 4 && e + b < values; ++b) word |= static_cast<uint32_t>(image[e + b]) << (8 * b);
    return word;
  }

  // Walks over the values of an image in the order of its memory; y is the line of the current one.
  struct Walk {
    int i, j, c;
  };
  static device_function float* Line(const LoadImagesArgs& a, const Walk& at, int tile, int lane) {
    return a.y.data + tile * a.y.tile + (at.i * a.y.row + at.j * a.y.pixel + at.c * kTile + lane);
  }
  static device_function float Normalise(const LoadImagesArgs& a, float x, int c) {
    return Add(Mul(x, LoadReadOnly(a.scale + c)), LoadReadOnly(a.offset + c));
  }

  template <class Context>
  static device_function void Run(Context& ctx, const LoadImagesArgs& a) {
    uint32_t* words = ctx.template Shared<uint32_t>();
    const int values = a.h * a.w * a.c, per_word = a.from_float ? 1 : 4, chunk = kWords * per_word;
    const int chunks = CeilDiv(values, chunk), jobs = CeilDiv(a.count, kTile) * chunks;
    const int warp = ctx.Warp(), lane = ctx.Lane(), warps = ctx.Warps();
    const bool aligned = values % 4 == 0 && reinterpret_cast<uintptr_t>(a.images) % 4 == 0;
    for (int job = ctx.BlockX(); job < jobs; job += ctx.BlocksX()) {
      const int tile = job / chunks, first = (job - tile * chunks) * chunk;
      ctx.Sync();  // the lines of the job before are read
      for (int m = warp; m < kTile; m += warps) {
        const int64_t image = static_cast<int64_t>(tile) * kTile + m;
        const int e = first + lane * per_word;
        uint32_t word = 0;
        if (image < a.count && e < values) {
          if (a.from_float) {
            const float v = static_cast<const float*>(a.images)[image * values + e];
            word = Bits(v);
            if (a.flags && !(Sub(v, v) == 0.0f)) ctx.AtomicOr(reinterpret_cast<uint32_t*>(a.flags + image), 0x7fc00000u);
          } else {
            word = Bytes(static_cast<const uint8_t*>(a.images) + image * values, e, values, aligned);
          }
        }
        words[m * kPitch + lane] = word;
      }
      ctx.Sync();
      const bool exists = static_cast<int64_t>(tile) * kTile + lane < a.count;
      for (int k = warp; k < kWords; k += warps) {
        const int e = first + k * per_word;
        if (e >= values) break;
        const uint32_t word = words[lane * kPitch + k];
        if (a.from_float) {
          const int c = e / (a.h * a.w), pixel = e - c * a.h * a.w, i = pixel / a.w;
          *Line(a, {i, pixel - i * a.w, c}, tile, lane) = exists ? Normalise(a, FromBits(word), c) : 0.0f;
        } else {
          const int pixel = e / a.c, i = pixel / a.w;
          Walk at = {i, pixel - i * a.w, e - pixel * a.c};
          for (int b = 0; b < 4 && e + b < values; ++b) {
            const float x = static_cast<float>(word >> (8 * b) & 0xffu);
            *Line(a, at, tile, lane) = exists ? Normalise(a, x, at.c) : 0.0f;
            if (++at.c == a.c) {
              at.c = 0;
              if (++at.j == a.w) at.j = 0, ++at.i;
            }
          }
        }
      }
    }
  }
};

}  // namespace hce::cuda
