// Weights from their usual layout into that of the kernels (lanes.h). Runs once, when a plan is built.
#pragma once
#include <vector>

#include "lanes.h"

namespace hce::cuda {

// weight [groups * group_outputs][group_inputs][kernel_h][kernel_w] -> [block][line][channels rounded up to 4], for a
// ConvConfig with these `channels`.
inline std::vector<float> PackConvWeights(const float* weight, int groups, int group_outputs, int group_inputs,
                                          int kernel_h, int kernel_w, int channels) {
  const int blocks = CeilDiv(group_outputs, channels), stride = RoundUp4(channels);
  const int64_t taps = int64_t{kernel_h} * kernel_w, lines = taps * group_inputs;
  std::vector<float> packed(static_cast<size_t>(int64_t{groups} * blocks * lines * stride), 0.0f);
  for (int g = 0; g < groups; ++g)
    for (int b = 0; b < blocks; ++b) {
      float* to = packed.data() + (int64_t{g} * blocks + b) * lines * stride;
      const int start = SegmentStart(b, group_outputs, blocks), end = SegmentStart(b + 1, group_outputs, blocks);
      for (int o = start; o < end; ++o)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int c = 0; c < group_inputs; ++c)
            to[(tap * group_inputs + c) * stride + (o - start)] =
                weight[((int64_t{g} * group_outputs + o) * group_inputs + c) * taps + tap];
    }
  return packed;
}

}  // namespace hce::cuda
