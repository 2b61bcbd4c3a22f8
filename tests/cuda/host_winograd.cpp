// Runs the Winograd kernel on threads of the operating system, under a sanitizer: `host_winograd IN OUT`; test_winograd.py writes
// IN and judges OUT.
//
//   IN   int32 [16]: tiles, out_h, out_w, inputs, outputs, slack, residual (0 none, 1 a map of its own, 2 y itself),
//        m, tiles of the configuration, channels, channel_groups, tile_groups, chunk, blocks, floats of weights, 0
//        float32 low, high, x, weights, bias, y, and the residual if it is a map of its own
//   OUT  float32 y
//
// Maps hold `slack` channels more than the kernel may touch; x and y have a halo of one pixel. Each operand lies in memory that
// ends where it ends. Exits with 3, and says why, where the arguments are refused.
#include <cstdio>

#include "../../csrc/cuda/winograd_f32.cu"

using namespace hce::cuda;

namespace {

struct Buffer {
  explicit Buffer(int64_t n) : size(static_cast<size_t>(n)), data(static_cast<float*>(::operator new(size * 4, std::align_val_t{128}))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t{128}); }
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
  int32_t n[16];
  float limits[2];
  if (!in || std::fread(n, 4, 16, in) != 16 || std::fread(limits, 4, 2, in) != 2) return 2;
  const int tiles = n[0], h = n[1], w = n[2];
  const int x_pixel = (n[3] + n[5]) * kTile, x_row = (w + 2) * x_pixel, y_pixel = (n[4] + n[5]) * kTile, y_row = (w + 2) * y_pixel;
  const int64_t x_tile = int64_t{h + 2} * x_row, y_tile = int64_t{h + 2} * y_row, r_tile = int64_t{h} * w * y_pixel;
  Buffer x(tiles * x_tile), weight(n[14]), bias(n[4]), y(tiles * y_tile), residual(n[6] == 1 ? tiles * r_tile : 0);
  for (Buffer* buffer : {&x, &weight, &bias, &y, &residual}) buffer->Read(in);
  std::fclose(in);
  float* inner = y.data + y_row + y_pixel;

  WinogradF32Args a{{x.data, x_tile, x_row, x_pixel}, weight.data, bias.data, {inner, y_tile, y_row, y_pixel}, {},
                    tiles, h, w, n[3], n[4], limits[0], limits[1], {n[7], n[8], n[9], n[10], n[11], n[12], n[13]}};
  if (n[6] == 1) a.residual = {residual.data, r_tile, w * y_pixel, y_pixel};
  if (n[6] == 2) a.residual = {inner, y_tile, y_row, y_pixel};
  if (const char* wrong = Check(a)) {
    std::puts(wrong);
    return LaunchWinogradF32(a, nullptr) == kInvalidValue ? 3 : 2;
  }
  if (LaunchWinogradF32(a, nullptr) != kSuccess) return 2;
  FILE* out = std::fopen(argv[2], "wb");
  return out && std::fwrite(y.data, 4, y.size, out) == y.size && std::fclose(out) == 0 ? 0 : 2;
}
