// Runs the kernel bodies of csrc/cuda on threads of the operating system, under a sanitizer: `host_kernels GROUP`.
//
// Every operand lies in a buffer of its own of exactly its size; what a kernel may not read holds NaN, what it may not
// write holds a pattern that is checked afterwards. Results are compared bit for bit with plain loops in the order that
// lanes.h states, and convolutions with float64 within gamma_n = n u / (1 - n u) times the sum of magnitudes, n = taps
// + 2 (docs/NUMERICS.md).
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>

#include "../../csrc/cuda/conv2d_f32.cu"
#include "../../csrc/cuda/conv_nhwc_f32.cu"
#include "../../csrc/cuda/lanes.cu"
#include "../../csrc/cuda/nhwc.cu"
#include "../../csrc/cuda/pack.h"

using namespace hce::cuda;

namespace {

int failures = 0;
std::string current;

void Fail(const std::string& what) {
  if (++failures <= 20) std::printf("FAIL %s: %s\n", current.c_str(), what.c_str());
}
void Expect(bool holds, const std::string& what) {
  if (!holds) Fail(what);
}
void ExpectBits(float got, float want, const std::string& where) {
  const bool both_nan = std::isnan(got) && std::isnan(want);
  if (!both_nan && Bits(got) != Bits(want))
    Fail(where + ": got " + std::to_string(got) + ", want " + std::to_string(want));
}

std::mt19937 random_bits(7);
float Random() { return static_cast<float>(static_cast<int32_t>(random_bits())) * 0x1p-31f; }
std::vector<float> Randoms(int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = Random();
  return v;
}

constexpr uint32_t kUntouched = 0x7fabcdefu;  // a NaN

// Floats aligned as the GPU's allocator does, in memory that ends where they end.
class Buffer {
 public:
  explicit Buffer(int64_t n) : size(n), data(static_cast<float*>(::operator new(static_cast<size_t>(n) * 4, std::align_val_t{128}))) {
    for (int64_t i = 0; i < n; ++i) data[i] = FromBits(kUntouched);
  }
  Buffer(const std::vector<float>& v) : Buffer(static_cast<int64_t>(v.size())) { std::copy(v.begin(), v.end(), data); }
  ~Buffer() { ::operator delete(data, std::align_val_t{128}); }
  Buffer(const Buffer&) = delete;
  const int64_t size;
  float* const data;
};

// A map with a halo, with `slack` channels behind its own in every pixel, as in a slice of a wider map.
struct Lanes {
  int tiles, h, w, c, halo, slack;
  Buffer buffer;
  Lanes(int tiles, int h, int w, int c, int halo, int slack)
      : tiles(tiles), h(h), w(w), c(c), halo(halo), slack(slack),
        buffer(int64_t{tiles} * (h + 2 * halo) * (w + 2 * halo) * (c + slack) * kTile) {}
  int Pixel() const { return (c + slack) * kTile; }
  int Row() const { return (w + 2 * halo) * Pixel(); }
  int64_t Tile() const { return int64_t{h + 2 * halo} * Row(); }
  float* Inner() const { return buffer.data + halo * Row() + halo * Pixel(); }
  // First pixel of tap (0, 0) with this padding.
  ConstMap Input(int pad_h = 0, int pad_w = 0) const { return {Inner() - pad_h * Row() - pad_w * Pixel(), Tile(), Row(), Pixel()}; }
  Map Output() const { return {Inner(), Tile(), Row(), Pixel()}; }
  float& At(int t, int i, int j, int ch, int n) const {
    return buffer.data[t * Tile() + (i + halo) * Row() + (j + halo) * Pixel() + ch * kTile + n];
  }
  // Calls f(value, inside) for every float of the map's own channels (slack left out).
  void Fill() {
    for (int t = 0; t < tiles; ++t)
      for (int i = -halo; i < h + halo; ++i)
        for (int j = -halo; j < w + halo; ++j)
          for (int ch = 0; ch < c; ++ch)
            for (int n = 0; n < kTile; ++n) At(t, i, j, ch, n) = i >= 0 && i < h && j >= 0 && j < w ? Random() : 0.0f;
  }
  // Every inner value is want(...), every other float of the buffer is as it was allocated.
  template <class Want>
  void Check(const Want& want) const {
    std::vector<bool> inner(static_cast<size_t>(buffer.size), false);
    for (int t = 0; t < tiles; ++t)
      for (int i = 0; i < h; ++i)
        for (int j = 0; j < w; ++j)
          for (int ch = 0; ch < c; ++ch)
            for (int n = 0; n < kTile; ++n) {
              const float& v = At(t, i, j, ch, n);
              inner[static_cast<size_t>(&v - buffer.data)] = true;
              ExpectBits(v, want(t, i, j, ch, n),
                         "tile " + std::to_string(t) + " pixel " + std::to_string(i) + "," + std::to_string(j) + " channel " +
                             std::to_string(ch) + " image " + std::to_string(n));
            }
    for (int64_t k = 0; k < buffer.size; ++k)
      if (!inner[static_cast<size_t>(k)] && Bits(buffer.data[k]) != kUntouched) return Fail("a float outside the map was written");
  }
};

float PlainClamp(float v, float low, float high) { return v < low ? low : v > high ? high : v; }
const float kInfinity = INFINITY;

struct ConvCase {
  int tiles, h, w, kh, kw, sh, sw, dh, dw, ph, pw, groups, inputs, outputs;  // inputs and outputs of a group
  int pixels, limit, channel_warps, pixel_warps, chunk, blocks;
  bool residual, relu;
};

void RunConv(const ConvCase& k) {
  const int out_h = (k.h + 2 * k.ph - k.dh * (k.kh - 1) - 1) / k.sh + 1;
  const int out_w = (k.w + 2 * k.pw - k.dw * (k.kw - 1) - 1) / k.sw + 1;
  const int halo = std::max(k.ph, k.pw), channels = ConvChannels(k.outputs, k.limit), all = k.groups * k.outputs;
  Lanes x(k.tiles, k.h, k.w, k.groups * k.inputs, halo, 2), y(k.tiles, out_h, out_w, all, 1, 1), r(k.tiles, out_h, out_w, all, 0, 3);
  x.Fill();
  r.Fill();
  x.At(0, 0, 0, 0, 3) = NAN;  // spoils image 3 and no other
  x.At(k.tiles - 1, k.h - 1, k.w - 1, 0, 31) = INFINITY;
  const std::vector<float> w = Randoms(int64_t{all} * k.inputs * k.kh * k.kw);
  const Buffer packed(PackConvWeights(w.data(), k.groups, k.outputs, k.inputs, k.kh, k.kw, channels)), bias(Randoms(all));
  ConvF32Args a{x.Input(k.ph, k.pw), packed.data, bias.data, y.Output(), k.residual ? r.Input() : ConstMap{}, k.tiles, out_h, out_w,
                k.kh, k.kw, k.sh, k.sw, k.dh, k.dw, k.groups, k.inputs, k.outputs, k.relu ? 0.0f : -kInfinity,
                k.relu ? 1.5f : kInfinity, {k.pixels, channels, k.channel_warps, k.pixel_warps, k.chunk, k.blocks}};
  const char* wrong = Check(a);
  if (wrong) return Fail(wrong);
  Expect(LaunchConv2dF32(a, nullptr) == kSuccess, "launch");
  const int taps = k.kh * k.kw * k.inputs;
  const double n = taps + 2, u = 0x1p-24, gamma = n * u / (1 - n * u);
  y.Check([&](int t, int i, int j, int o, int image) {
    const int g = o / k.outputs;
    float sum = bias.data[o];
    double exact = sum, magnitude = std::fabs(exact);
    for (int a_ = 0; a_ < k.kh; ++a_)
      for (int b = 0; b < k.kw; ++b)
        for (int c = 0; c < k.inputs; ++c) {
          const float in = x.At(t, i * k.sh + a_ * k.dh - k.ph, j * k.sw + b * k.dw - k.pw, g * k.inputs + c, image);
          const float weight = w[static_cast<size_t>(((int64_t{o} * k.inputs + c) * k.kh + a_) * k.kw + b)];
          sum = std::fmaf(in, weight, sum);
          exact += double{in} * weight;
          magnitude += std::fabs(double{in} * weight);
        }
    if (k.residual) {
      const float add = r.At(t, i, j, o, image);
      sum += add;
      exact += add;
      magnitude += std::fabs(double{add});
    }
    Expect(!(std::fabs(sum - exact) > gamma * magnitude), "outside the bound against float64");
    return PlainClamp(sum, a.low, a.high);
  });
}

void Conv() {
  const std::vector<ConvCase> cases = {
      // tiles h  w  kernel stride dilation padding groups in out   P limit warps chunk blocks residual relu
      {2, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 3, 9, 2, 12, 1, 4, 1000, 0, true, true},       // all weights at once, 9 in one
      {1, 4, 5, 3, 3, 1, 1, 1, 1, 1, 1, 1, 5, 9, 2, 8, 2, 2, 7, 2, true, true},            // 5 + 4, chunks across taps
      {3, 3, 3, 3, 3, 2, 2, 1, 1, 1, 1, 1, 2, 17, 1, 16, 2, 2, 18, 3, false, true},         // stride, 9 + 8, more tiles
      {1, 6, 6, 3, 3, 1, 1, 2, 2, 2, 2, 1, 3, 33, 2, 12, 3, 1, 27, 0, false, false},        // dilation, 11 x 3, 3 warps
      {1, 3, 9, 1, 1, 1, 1, 1, 1, 0, 0, 1, 33, 16, 1, 16, 1, 1, 16, 0, true, false},        // 1 x 1, no halo
      {1, 5, 4, 1, 3, 1, 2, 1, 1, 0, 1, 3, 2, 3, 2, 2, 4, 1, 5, 0, false, true},            // groups, 2 + 1, idle warps
      {1, 2, 2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 12, 1, 1, 1, -32, false, false},        // one channel, one line a chunk, half the grid
      {1, 7, 1, 5, 1, 3, 1, 1, 1, 2, 0, 1, 7, 10, 2, 5, 2, 2, 9, 1, true, true},            // one column
      {2, 1, 11, 3, 3, 1, 1, 1, 1, 1, 1, 1, 4, 23, 2, 6, 4, 1, 36, 5, false, true},         // 6 + 6 + 6 + 5
  };
  for (size_t n = 0; n < cases.size(); ++n) {
    current = "conv case " + std::to_string(n);
    RunConv(cases[n]);
  }
}

// Each register tile that is compiled, once.
void ConvTiles() {
  for (int pixels = 1; pixels <= 2; ++pixels)
    for (int channels = 1; channels <= kConvChannels[pixels]; ++channels) {
      current = "conv tile " + std::to_string(pixels) + " x " + std::to_string(channels);
      const int outputs = channels == 1 ? 1 : 2 * channels - 1;  // channels and one less
      RunConv({1, 2, 3, 2, 1, 1, 1, 1, 1, 1, 0, 1, 2, outputs, pixels, channels, 2, 1, 3, 1, true, true});
    }
}

void Linear() {
  for (const auto& [tiles, inputs, outputs, pixels] : {std::array{3, 64, 10, 2}, std::array{9, 7, 33, 1}, std::array{1, 1, 1, 1}}) {
    current = "linear " + std::to_string(inputs) + " -> " + std::to_string(outputs);
    const Buffer x(Randoms(int64_t{tiles} * inputs * kTile)), bias(Randoms(outputs)), y(int64_t{tiles} * outputs * kTile);
    const std::vector<float> w = Randoms(int64_t{inputs} * outputs);
    const int channels = ConvChannels(outputs, 8);
    const Buffer packed(PackConvWeights(w.data(), 1, outputs, inputs, 1, 1, channels));
    Expect(LaunchLinearF32({x.data, packed.data, bias.data, y.data, tiles, inputs, outputs, -kInfinity, kInfinity,
                            {pixels, channels, 2, 1, 24, 0}}, nullptr) == kSuccess, "launch");
    for (int t = 0; t < tiles; ++t)
      for (int o = 0; o < outputs; ++o)
        for (int n = 0; n < kTile; ++n) {
          float sum = bias.data[o];
          for (int f = 0; f < inputs; ++f) sum = std::fmaf(x.data[(t * inputs + f) * kTile + n], w[o * inputs + f], sum);
          ExpectBits(y.data[(t * outputs + o) * kTile + n], sum, "feature " + std::to_string(o));
        }
  }
}

void Depthwise() {
  struct Case { int tiles, h, w, kh, kw, s, d, p, inputs, multiplier; };
  for (const Case& k : {Case{2, 5, 7, 3, 3, 1, 1, 1, 9, 1}, Case{1, 8, 6, 3, 3, 2, 1, 1, 17, 1}, Case{1, 6, 5, 5, 5, 1, 1, 2, 3, 2},
                        Case{1, 7, 7, 3, 3, 1, 2, 2, 1, 3}, Case{1, 3, 3, 1, 3, 3, 1, 1, 5, 1}}) {
    current = "depthwise " + std::to_string(k.kh) + "x" + std::to_string(k.kw) + " of " + std::to_string(k.inputs);
    const int out_h = (k.h + 2 * k.p - k.d * (k.kh - 1) - 1) / k.s + 1, out_w = (k.w + 2 * k.p - k.d * (k.kw - 1) - 1) / k.s + 1;
    const int outputs = k.inputs * k.multiplier;
    Lanes x(k.tiles, k.h, k.w, k.inputs, k.p, 1), y(k.tiles, out_h, out_w, outputs, 1, 2), r(k.tiles, out_h, out_w, outputs, 0, 0);
    x.Fill();
    r.Fill();
    const Buffer w(Randoms(int64_t{k.kh} * k.kw * outputs)), bias(Randoms(outputs));
    Expect(LaunchDepthwiseF32({x.Input(k.p, k.p), w.data, bias.data, y.Output(), r.Input(), k.tiles, out_h, out_w, k.kh, k.kw, k.s, k.s,
                               k.d, k.d, outputs, k.multiplier, 0.0f, 6.0f, 0}, nullptr) == kSuccess, "launch");
    y.Check([&](int t, int i, int j, int o, int n) {
      float sum = bias.data[o];
      for (int a = 0; a < k.kh; ++a)
        for (int b = 0; b < k.kw; ++b)
          sum = std::fmaf(x.At(t, i * k.s + a * k.d - k.p, j * k.s + b * k.d - k.p, o / k.multiplier, n),
                          w.data[(a * k.kw + b) * outputs + o], sum);
      return PlainClamp(sum + r.At(t, i, j, o, n), 0.0f, 6.0f);
    });
  }
}

void Pool() {
  struct Case { PoolKind kind; int tiles, h, w, c, k, s, p, include; };
  for (const Case& k : {Case{PoolKind::kMax, 2, 7, 5, 9, 3, 2, 1, 0}, Case{PoolKind::kAverage, 1, 5, 7, 3, 3, 2, 1, 1},
                        Case{PoolKind::kAverage, 1, 5, 7, 3, 3, 2, 1, 0}, Case{PoolKind::kAverage, 2, 4, 4, 17, 4, 1, 0, 1},
                        Case{PoolKind::kMax, 1, 1, 1, 1, 1, 1, 0, 0}}) {
    current = "pool " + std::to_string(k.k) + " of " + std::to_string(k.c);
    const int out_h = (k.h + 2 * k.p - k.k) / k.s + 1, out_w = (k.w + 2 * k.p - k.k) / k.s + 1;
    Lanes x(k.tiles, k.h, k.w, k.c, 0, 1), y(k.tiles, out_h, out_w, k.c, 1, 0);  // no halo: padding is not read
    x.Fill();
    x.At(0, k.h / 2, k.w / 2, 0, 5) = NAN;
    Expect(LaunchPoolF32({x.Input(), y.Output(), k.tiles, k.h, k.w, out_h, out_w, k.c, k.k, k.k, k.s, k.s, k.p, k.p, k.include, k.kind, 0},
                         nullptr) == kSuccess, "launch");
    y.Check([&](int t, int i, int j, int c, int n) {
      float best = -kInfinity, sum = 0.0f;
      int inside = 0;
      for (int a = 0; a < k.k; ++a)
        for (int b = 0; b < k.k; ++b) {
          const int row = i * k.s + a - k.p, column = j * k.s + b - k.p;
          if (row < 0 || row >= k.h || column < 0 || column >= k.w) continue;
          const float v = x.At(t, row, column, c, n);
          best = std::isnan(v) || std::isnan(best) ? NAN : std::max(best, v);
          sum += v;
          ++inside;
        }
      return k.kind == PoolKind::kMax ? best : sum / static_cast<float>(k.include ? k.k * k.k : inside);
    });
  }
}

void Elementwise() {
  current = "add";
  Lanes a(2, 3, 5, 7, 1, 1), b(2, 3, 5, 7, 0, 0), y(2, 3, 5, 7, 2, 3), alone(2, 3, 5, 7, 0, 1);
  a.Fill();
  b.Fill();
  a.At(1, 2, 4, 6, 31) = NAN;
  a.At(0, 0, 0, 0, 0) = -0.0f;  // stays -0 through a clamp at +0
  b.At(0, 0, 0, 0, 0) = -0.0f;
  Expect(LaunchAddF32({a.Input(), b.Input(), y.Output(), 2, 3, 5, 7, 0.3f, 0.0f, 0.25f, 0}, nullptr) == kSuccess, "launch");
  y.Check([&](int t, int i, int j, int c, int n) {
    const float sum = a.At(t, i, j, c, n) + b.At(t, i, j, c, n);
    return PlainClamp(sum * 0.3f, 0.0f, 0.25f);
  });
  Expect(LaunchAddF32({a.Input(), {}, alone.Output(), 2, 3, 5, 7, 1.0f, -kInfinity, kInfinity, 1}, nullptr) == kSuccess, "launch");
  alone.Check([&](int t, int i, int j, int c, int n) { return a.At(t, i, j, c, n); });

  current = "copy: a strided slice with channel padding";
  Lanes x(2, 7, 5, 3, 1, 0), padded(2, 3, 3, 10, 1, 0);
  x.Fill();
  Expect(LaunchCopyF32({x.Input(), padded.Output(), 2, 3, 3, 3, 4, 10, 1, 2, 0, 2, 0}, nullptr) == kSuccess, "launch");
  padded.Check([&](int t, int i, int j, int c, int n) { return c < 4 || c >= 7 ? 0.0f : x.At(t, 1 + 2 * i, 2 * j, c - 4, n); });

  current = "copy: concatenation";
  Lanes first(1, 2, 3, 5, 0, 0), second(1, 2, 3, 4, 0, 0), both(1, 2, 3, 9, 1, 1);
  first.Fill();
  second.Fill();
  Expect(LaunchCopyF32({first.Input(), both.Output(), 1, 2, 3, 5, 0, 0, 0, 1, 0, 1, 0}, nullptr) == kSuccess, "launch");
  Expect(Bits(both.At(0, 0, 0, 5, 0)) == kUntouched, "the other operand's channels stay");
  Expect(LaunchCopyF32({second.Input(), both.Output(), 1, 2, 3, 4, 5, 0, 0, 1, 0, 1, 0}, nullptr) == kSuccess, "launch");
  both.Check([&](int t, int i, int j, int c, int n) { return c < 5 ? first.At(t, i, j, c, n) : second.At(t, i, j, c - 5, n); });

  current = "flatten";
  Lanes features(2, 1, 1, 3 * 7 * 5, 0, 0);
  Expect(LaunchFlattenF32({x.Input(), features.buffer.data, 2, 7, 5, 3, 0}, nullptr) == kSuccess, "launch");
  features.Check([&](int t, int, int, int f, int n) { return x.At(t, f / 5 % 7, f % 5, f / 35, n); });

  current = "ensemble mean";
  for (int members = 1; members <= 3; ++members) {
    const Buffer z0(Randoms(301)), z1(Randoms(301)), z2(Randoms(301)), out(301);
    const float factor = 1.0f / static_cast<float>(members);
    Expect(LaunchEnsembleMean({{z0.data, z1.data, z2.data}, members, factor, out.data, 301, 0}, nullptr) == kSuccess, "launch");
    for (int k = 0; k < 301; ++k) {
      float sum = z0.data[k];
      if (members > 1) sum += z1.data[k];
      if (members > 2) sum += z2.data[k];
      ExpectBits(out.data[k], members > 1 ? sum * factor : sum, std::to_string(k));
    }
  }
}

void Images() {
  // Sizes of an image that are and are not a multiple of a word, of a chunk; images that do not begin at a word.
  for (const auto& [count, h, w, c, shift] : {std::array{33, 8, 8, 3, 0}, std::array{5, 3, 5, 3, 0}, std::array{40, 4, 4, 4, 1},
                                              std::array{32, 1, 1, 1, 0}, std::array{1, 5, 9, 7, 3}}) {
    current = "uint8 images " + std::to_string(h) + "x" + std::to_string(w) + "x" + std::to_string(c);
    const int values = h * w * c, tiles = (count + 31) / 32;
    const std::unique_ptr<uint8_t[]> bytes(new uint8_t[static_cast<size_t>(count * values + shift)]);
    for (int k = 0; k < count * values + shift; ++k) bytes[k] = static_cast<uint8_t>(random_bits());
    const Buffer scale(Randoms(c)), offset(Randoms(c));
    Lanes y(tiles, h, w, c, 1, 1);
    Expect(LaunchLoadImages({bytes.get() + shift, 0, count, h, w, c, scale.data, offset.data, y.Output(), nullptr, 0}, nullptr) == kSuccess,
           "launch");
    y.Check([&](int t, int i, int j, int ch, int n) {
      if (t * 32 + n >= count) return 0.0f;
      const float product = static_cast<float>(bytes[(t * 32 + n) * values + (i * w + j) * c + ch + shift]) * scale.data[ch];
      return product + offset.data[ch];
    });

    current = "float images " + std::to_string(h) + "x" + std::to_string(w) + "x" + std::to_string(c);
    const Buffer floats(Randoms(int64_t{count} * values)), flags(count);
    floats.data[0] = INFINITY;
    floats.data[count * values - 1] = NAN;
    Lanes z(tiles, h, w, c, 0, 0);
    Expect(LaunchLoadImages({floats.data, 1, count, h, w, c, scale.data, offset.data, z.Output(), flags.data, 3}, nullptr) == kSuccess,
           "launch");
    z.Check([&](int t, int i, int j, int ch, int n) {
      if (t * 32 + n >= count) return 0.0f;
      const float product = floats.data[(t * 32 + n) * values + (ch * h + i) * w + j] * scale.data[ch];
      return product + offset.data[ch];
    });
    for (int n = 0; n < count; ++n) ExpectBits(flags.data[n], n == 0 || n == count - 1 ? NAN : 0.0f, "flag " + std::to_string(n));
  }
  for (const auto& [count, classes] : {std::array{33, 10}, std::array{32, 32}, std::array{70, 45}, std::array{1, 1}}) {
    current = "logits " + std::to_string(count) + " x " + std::to_string(classes);
    const int tiles = (count + 31) / 32;
    const Buffer x(Randoms(int64_t{tiles} * classes * kTile)), flags(std::vector<float>(static_cast<size_t>(count), 0.0f));
    const Buffer out(int64_t{count} * classes), plain(int64_t{count} * classes);
    flags.data[count - 1] = NAN;
    Expect(LaunchStoreLogits({x.data, flags.data, out.data, count, classes, 0}, nullptr) == kSuccess, "launch");
    Expect(LaunchStoreLogits({x.data, nullptr, plain.data, count, classes, 1}, nullptr) == kSuccess, "launch");
    for (int n = 0; n < count; ++n)
      for (int k = 0; k < classes; ++k) {
        const float want = x.data[((n / 32) * classes + k) * kTile + n % 32];
        ExpectBits(plain.data[n * classes + k], want, "logit");
        ExpectBits(out.data[n * classes + k], n == count - 1 ? NAN : want, "logit of a flagged batch");
      }
  }
}

void Arguments() {
  current = "arguments";
  float some[4];
  ConvF32Args a{};
  a.x.data = a.weight = a.bias = some;
  a.y.data = some;
  a.tiles = a.out_h = a.out_w = a.kernel_h = a.kernel_w = a.stride_h = a.stride_w = a.dilation_h = a.dilation_w = 1;
  a.groups = a.group_inputs = 1;
  a.group_outputs = 9;
  a.config = {2, 9, 1, 4, 16, 0};
  Expect(!Check(a), "right ones are taken");
  const auto refused = [&](const char* what, const std::function<void(ConvF32Args&)>& change) {
    ConvF32Args b = a;
    change(b);
    Expect(Check(b) && LaunchConv2dF32(b, nullptr) == kInvalidValue, what);
  };
  refused("no weights", [](auto& b) { b.weight = nullptr; });
  refused("no channels", [](auto& b) { b.group_inputs = 0; });
  refused("an uneven cut", [](auto& b) { b.config.channels = 8; });
  refused("a tile that is not compiled", [](auto& b) { b.config.pixels = 3; });
  refused("too many channels", [](auto& b) { b.group_outputs = b.config.channels = 13; });
  refused("too many warps", [](auto& b) { b.config.channel_warps = 2; });
  refused("too much shared memory", [](auto& b) { b.group_inputs = b.config.chunk_lines = 1 << 20; });
  refused("more than all blocks", [](auto& b) { b.config.blocks = -kGridShares - 1; });
}

// Grids, where two blocks run at once.
void Grids() {
  current = "grids";
  const auto blocks = [](int64_t jobs, int per_block, int blocks_y, int asked) {
    return GridBlocks<AddF32, AddF32Args>(jobs, per_block, blocks_y, asked, 32, 0);
  };
  Expect(blocks(100, 1, 1, 0) == 2, "as many as run at once");
  Expect(blocks(100, 1, 1, 7) == 7, "as many as asked");
  Expect(blocks(100, 50, 1, 7) == 2 && blocks(1, 1, 1, 0) == 1, "no more than the work");
  Expect(blocks(100, 1, 1, -kGridShares) == 2 && blocks(100, 1, 1, -kGridShares / 2) == 1, "a share of them");
  Expect(blocks(100, 1, 1, -1) == 1 && blocks(100, 1, 2, -kGridShares / 2) == 1, "one at least");
}

}  // namespace

#include "host_mutants.h"
#include "host_nhwc.h"
#include "host_warp.h"

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void()>> groups = {
      {"conv", Conv}, {"conv_tiles", ConvTiles}, {"linear", Linear}, {"depthwise", Depthwise}, {"pool", Pool},
      {"elementwise", Elementwise}, {"images", Images}, {"warp", Warp}, {"arguments", Arguments}, {"grids", Grids},
      {"nhwc_conv", NhwcConv}, {"nhwc_depthwise", NhwcDepthwise}, {"nhwc_moves", NhwcMoves}, {"nhwc_images", NhwcImages},
      {"nhwc_arguments", NhwcArguments},
      {"mutant_barrier", [] { RunMutant(0); }}, {"mutant_bounds", [] { RunMutant(1); }}, {"mutant_copy", [] { RunMutant(2); }}};
  if (argc != 2 || !groups.count(argv[1])) {
    for (const auto& group : groups) std::puts(group.first.c_str());
    return 2;
  }
  groups.at(argv[1])();
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
