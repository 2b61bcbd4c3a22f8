// Convolution of the float member on tensor cores: each operand is split into two numbers of few bits, and three of the four
// products are summed in float32, so that most of its precision stays ("compensated"). Beside lanes.h, whose maps these are.
//
//   tf32x3   high = tf32(v), low = v - high as TF32                       11 + 11 bits
//   fp16x3   high = fp16(v), low = fp16((v - high) * 2^11)                11 + 11 bits, |v| up to 65504 (Ootomo and Yokota,
//            International Journal of High Performance Computing Applications 2022, arXiv 2203.03341)
//   bf16x3   high = bf16(v), low = bf16(v - high)                         8 + 8 bits
//
//   y = clamp(f * (sum w_high x_high + s * sum (w_high x_low + w_low x_high)) + bias (+ residual), low, high)
//
// s is 2^-11 for fp16x3, else 1. f is a power of two: weights of fp16x3 are scaled so that the largest of a layer lies in
// [2^14, 2^15), where low parts of weights 2^-28 times smaller are still normal numbers. Error bounds: docs/NUMERICS.md. A
// result depends on its image alone, not on the configuration. A value that high cannot hold (beyond 65504 of fp16x3, an
// infinity of any) has an infinite high and an infinite or undefined low part, so each output that depends on it is NaN, never
// a wrong number.
#pragma once
#include "lanes.h"

namespace hce::cuda {

enum class Arithmetic : int32_t { kTf32x3, kFp16x3, kBf16x3 };

host_device_function constexpr bool HasPairs(Arithmetic a) { return a != Arithmetic::kTf32x3; }

// A split map holds values of a 16-bit arithmetic split once, by the kernel that made them. A line is then 32 words, one for
// each image, and a pair of channels (2 j, 2 j + 1) takes two lines: line 2 j the high parts, line 2 j + 1 the low parts, of
// channel 2 j in the low half of the word. An odd last channel is paired with zeros. So a map of an even number of channels
// takes the bytes that it takes in float32; the strides of Map count words. Pixels are aligned to 256 bytes, and word n of the
// pair of lines at byte address a stands at place n ^ (a / 256 % 4) * 8 of its line (SplitPlace): the lanes that load the same
// images of four pairs side by side then reach all 32 banks of L1.
//
// There are no split maps of tf32x3: splitting a float into TF32 while it is loaded takes three instructions, two words per
// value would take twice the bytes. A float map is split by each warp that loads it. What a convolution writes, float32, split
// or both, is up to the readers. A residual is float32, and y may lie where it does.
//
// Terms of a sum: those of tf32x3 are (kernel row, kernel column, input channel), those of the others (kernel row, kernel
// column, pair of input channels). They are taken in this order, eight per step, which is one mma.m16n8k8 or m16n8k16 each for
// 16 images and 8 outputs; the last step is filled up with the first term, whose weights are zero there. So channels are padded
// to 2, sums to 8 terms, outputs to 8: 9 channels to 9 outputs by 3 x 3 cost 96 x 16 products instead of 81 x 9.
//
// A warp computes `octets` blocks of 8 outputs, cut evenly as in ConvConfig, of kSplitPixels[octets] pixels of 32 images, which
// follow each other in the order (tile, row, column). channel_warps of a thread block read the same inputs.
//
// Weights, packed by hce_engine/plan/cuda/split_weights.py: words [step][block of 8 outputs][lane][4], for lane = 4 o + t high
// parts of output o of terms t and t + 4 of the step, then their low parts. A lane loads its fragment by one 128-bit load, from
// L1: 512 bytes that all warps of a multiprocessor share.
struct SplitConfig {
  int32_t octets;                      // 1 to kSplitOctets
  int32_t channel_warps, pixel_warps;  // product at most kConvWarps
  int32_t blocks;                      // along the pixels; 0: as many as run at once on the device; < 0: a share (launch.h)
};
constexpr int kSplitOctets = 4;
constexpr int kSplitPixels[kSplitOctets + 1] = {0, 2, 2, 1, 1};
constexpr int kSplitTerms = 8;  // per step

// What is xored to the number of an image, in the pair of lines at `pair`.
host_device_function int SplitPlace(const float* pair) { return static_cast<int>(reinterpret_cast<uintptr_t>(pair) >> 5 & 24); }

struct ConvSplitArgs {
  Arithmetic arithmetic;
  ConstMap x;  // data: the input pixel of tap (0, 0) of output pixel (0, 0), which may lie in the halo
  int32_t x_split;
  const float* weight;  // words
  const float* bias;    // [outputs]
  Map y;                // float32; data nullptr: not wanted
  Map split;            // of a 16-bit arithmetic; data nullptr: not wanted
  ConstMap residual;    // data nullptr: none
  int32_t tiles, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int32_t inputs, outputs;
  float factor, low, high;
  SplitConfig config;

  // Terms of one tap.
  host_device_function int TapTerms() const { return HasPairs(arithmetic) ? CeilDiv(inputs, 2) : inputs; }
  host_device_function int Steps() const { return CeilDiv(int64_t{kernel_h} * kernel_w * TapTerms(), kSplitTerms); }
  host_device_function int Octets() const { return CeilDiv(outputs, 8); }
  host_device_function int Blocks() const { return CeilDiv(Octets(), config.octets); }
  // Lines whose places a lane must know to load a term.
  host_device_function int TermLines() const { return HasPairs(arithmetic) && !x_split ? 2 : 1; }
};

}  // namespace hce::cuda
