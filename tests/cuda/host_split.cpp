// Runs a convolution with split operands on threads of the operating system, under a sanitizer: `host_split IN OUT`;
// test_split.py writes IN and judges OUT.
//
//   IN   int32 [32]: arithmetic (0 tf32x3, 1 fp16x3, 2 bf16x3), tiles, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w,
//   dilation_h,
//        dilation_w, inputs, outputs, x_split, writes (1 y, 2 split), residual (0 none, 1 a map of its own, 2 y itself),
//        octets, channel_warps, pixel_warps, blocks, words of weights; of x, y, split and residual floats of a tile, a row and
//        a pixel int32 [4]: floats in front of the first pixel of x, y, split and residual float32 factor, low, high, weights,
//        bias, then x, y, split, and the residual if it is a map of its own: `tiles` tiles each
//   OUT  float32 y, split
//
// Maps begin at multiples of 1024 bytes and end where they end. Exits with 3, and says why, where the arguments are refused.
#include <cstdio>

#include "../../csrc/cuda/conv2d_split.cu"

using namespace hce::cuda;

namespace {

struct Buffer {
  explicit Buffer(int64_t n)
      : size(static_cast<size_t>(n)), data(static_cast<float*>(::operator new(size * 4, std::align_val_t{1024}))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t{1024}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void Read(FILE* file) {
    if (std::fread(data, 4, size, file) != size) std::abort();
  }
  const size_t size;
  float* const data;
};

}  // namespace

int main(int argc, char** argv) {
  FILE* in = argc == 3 ? std::fopen(argv[1], "rb") : nullptr;
  int32_t n[32], first[4];
  float scalars[3];
  if (!in || std::fread(n, 4, 32, in) != 32 || std::fread(first, 4, 4, in) != 4 || std::fread(scalars, 4, 3, in) != 3) return 2;
  const int tiles = n[1], outputs = n[11];
  const int32_t *x_strides = n + 20, *y_strides = n + 23, *split_strides = n + 26, *r_strides = n + 29;
  Buffer weight(n[19]), bias(outputs), x(int64_t{tiles} * x_strides[0]), y(int64_t{tiles} * y_strides[0]),
      split(int64_t{tiles} * split_strides[0]), residual(n[14] == 1 ? int64_t{tiles} * r_strides[0] : 0);
  for (Buffer* buffer : {&weight, &bias, &x, &y, &split, &residual}) buffer->Read(in);
  std::fclose(in);

  ConvSplitArgs a{static_cast<Arithmetic>(n[0]),
                  {x.data + first[0], x_strides[0], x_strides[1], x_strides[2]},
                  n[12],
                  weight.data,
                  bias.data,
                  {},
                  {},
                  {},
                  tiles,
                  n[2],
                  n[3],
                  n[4],
                  n[5],
                  n[6],
                  n[7],
                  n[8],
                  n[9],
                  n[10],
                  outputs,
                  scalars[0],
                  scalars[1],
                  scalars[2],
                  {n[15], n[16], n[17], n[18]}};
  const Map whole{y.data + first[1], y_strides[0], y_strides[1], y_strides[2]};
  if (n[13] & 1) a.y = whole;
  if (n[13] & 2) a.split = {split.data + first[2], split_strides[0], split_strides[1], split_strides[2]};
  if (n[14] == 1) a.residual = {residual.data + first[3], r_strides[0], r_strides[1], r_strides[2]};
  if (n[14] == 2) a.residual = {whole.data, whole.tile, whole.row, whole.pixel};
  if (const char* wrong = Check(a)) {
    std::puts(wrong);
    return LaunchConv2dSplit(a, nullptr) == kInvalidValue ? 3 : 2;
  }
  if (LaunchConv2dSplit(a, nullptr) != kSuccess) return 2;
  FILE* out = std::fopen(argv[2], "wb");
  const bool written =
      out && std::fwrite(y.data, 4, y.size, out) == y.size && std::fwrite(split.data, 4, split.size, out) == split.size;
  return written && std::fclose(out) == 0 ? 0 : 2;
}
