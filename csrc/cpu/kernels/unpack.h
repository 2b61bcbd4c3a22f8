// Packed weights to one signed byte each. The order within a chunk of 64 weights is chosen for plain vector code:
//
//   s4  32 bytes; byte i holds weight i in its low and weight i + 32 in its high nibble
//   s3  24 bytes; byte i < 16 holds the low two bits of weights i, i + 16, i + 32, i + 48, lowest bits first;
//       bit q of byte 16 + j holds the sign bit of weight 8 q + j
//   s8  64 bytes
//
// hce_engine.plan.weights.pack writes it. `chunks` chunks are read, 64 bytes written for each.
#pragma once
#include <cstdint>

namespace hce::kernels {

template <class S>
void UnpackS4(const uint8_t* packed, int8_t* out, int64_t chunks) {
  for (int64_t k = 0; k < chunks; ++k, packed += 32, out += 64)
    for (int i = 0; i < 32; ++i) {
      out[i] = static_cast<int8_t>(((packed[i] & 15) ^ 8) - 8);
      out[i + 32] = static_cast<int8_t>(((packed[i] >> 4) ^ 8) - 8);
    }
}

template <class S>
void UnpackS3(const uint8_t* packed, int8_t* out, int64_t chunks) {
  for (int64_t k = 0; k < chunks; ++k, packed += 24, out += 64) {
    for (int q = 0; q < 4; ++q)
      for (int i = 0; i < 16; ++i) out[16 * q + i] = static_cast<int8_t>((packed[i] >> (2 * q)) & 3);
    for (int q = 0; q < 8; ++q)
      for (int j = 0; j < 8; ++j)
        out[8 * q + j] = static_cast<int8_t>(out[8 * q + j] - 4 * ((packed[16 + j] >> q) & 1));
  }
}

}  // namespace hce::kernels
