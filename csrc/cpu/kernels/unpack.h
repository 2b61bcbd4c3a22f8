// Packed weights to one signed byte each. The order within a chunk of 64 weights is chosen for plain vector code:
//
//   s4  32 bytes; byte i holds weight i in its low and weight i + 32 in its high nibble
//   s3  24 bytes; byte i < 16 holds the low two bits of weights i, i + 16, i + 32, i + 48, lowest bits first;
//       bit q of byte 16 + j holds the sign bit of weight 8 q + j
//   s8  64 bytes
//
// hce_engine.plan.cpu.weights.pack writes it. `chunks` chunks are read, 64 bytes written for each.
#pragma once
#include <cstdint>
#include <cstring>

namespace hce::kernels {

// Compiler vectors: GCC 12 does not vectorize a plain loop over the 3-bit planes, which takes four times as long.
template <class S>
void UnpackS4(const uint8_t* packed, int8_t* out, int64_t chunks) {
  typedef uint8_t Bytes __attribute__((vector_size(32)));
  for (int64_t k = 0; k < chunks; ++k, packed += 32, out += 64) {
    Bytes b;
    std::memcpy(&b, packed, 32);
    const Bytes low = ((b & 15) ^ 8) - 8, high = ((b >> 4) ^ 8) - 8;
    std::memcpy(out, &low, 32);
    std::memcpy(out + 32, &high, 32);
  }
}

template <class S>
void UnpackS3(const uint8_t* packed, int8_t* out, int64_t chunks) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint64_t Words __attribute__((vector_size(16)));
  for (int64_t k = 0; k < chunks; ++k, packed += 24, out += 64) {
    Bytes pairs;
    uint64_t plane;
    std::memcpy(&pairs, packed, 16);
    std::memcpy(&plane, packed + 16, 8);
    const Bytes signs = reinterpret_cast<Bytes>(Words{plane, plane});
    Bytes bit = {1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2};
    for (int q = 0; q < 4; ++q) {
      const Bytes negative = reinterpret_cast<Bytes>((signs & bit) != 0);
      const Bytes codes = (pairs & 3) - (negative & 4);
      std::memcpy(out + 16 * q, &codes, 16);
      pairs >>= 2;
      bit <<= 2;
    }
  }
}

}  // namespace hce::kernels
