// Linear layer on features (../lanes.h, LinearF32Args): the direct convolution of a map of one row whose pixels are the
// tiles, so that `pixels` tiles share each weight.
#pragma once
#include "../lanes.h"

namespace hce::cuda {

inline ConvF32Args AsConv(const LinearF32Args& a) {
  ConvF32Args conv{};
  conv.x = {a.x, 0, 0, a.inputs * kTile};
  conv.weight = a.weight;
  conv.bias = a.bias;
  conv.y = {a.y, 0, 0, a.outputs * kTile};
  conv.tiles = conv.out_h = 1;
  conv.out_w = a.tiles;
  conv.kernel_h = conv.kernel_w = conv.stride_h = conv.stride_w = conv.dilation_h = conv.dilation_w = 1;
  conv.groups = 1;
  conv.group_inputs = a.inputs;
  conv.group_outputs = a.outputs;
  conv.low = a.low;
  conv.high = a.high;
  conv.config = a.config;
  return conv;
}

}  // namespace hce::cuda
