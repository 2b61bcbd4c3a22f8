// Kernels on NHWC maps beside plain loops in the order that nhwc.h states. Part of host_kernels.cpp.
//
// Maps are those of host_kernels.cpp with images for tiles and lines for channels. Lanes behind the last channel hold NaN.
#pragma once

namespace {

struct Channels : Lanes {
  int channels;
  Channels(int images, int h, int w, int channels, int halo, int slack = 0)
      : Lanes(images, h, w, CeilDiv(channels, kTile), halo, slack), channels(channels) {}
  float& Of(int image, int i, int j, int ch) const { return At(image, i, j, ch / kTile, ch % kTile); }
  void FillChannels() {
    Fill();
    for (int n = 0; n < tiles; ++n)
      for (int i = 0; i < h; ++i)
        for (int j = 0; j < w; ++j)
          for (int ch = channels; ch < c * kTile; ++ch) Of(n, i, j, ch) = NAN;
  }
  // Every channel is want(image, i, j, channel), halo and slack are as they were allocated; padding lanes may hold anything.
  template <class Want>
  void CheckChannels(const Want& want) const {
    Check([&](int n, int i, int j, int line, int lane) {
      const int ch = line * kTile + lane;
      return ch < channels ? want(n, i, j, ch) : At(n, i, j, line, lane);
    });
  }
};

struct NhwcCase {
  int images, h, w, kh, kw, sh, sw, dh, dw, ph, pw, groups, inputs, outputs;  // inputs and outputs of a group
  int tile, segments;
  bool residual, relu;
};

std::vector<float> PackNhwc(const std::vector<float>& w, const ConvNhwcF32Args& a) {
  const int columns = a.config.columns, taps = a.kernel_h * a.kernel_w;
  std::vector<float> packed(static_cast<size_t>(int64_t{a.groups} * a.Columns() * a.Steps() * kNhwcStep * columns), 0.0f);
  for (int g = 0; g < a.groups; ++g)
    for (int o = 0; o < a.group_outputs; ++o)
      for (int tap = 0; tap < taps; ++tap)
        for (int c = 0; c < a.group_inputs; ++c) {
          const int64_t block = int64_t{g} * a.Columns() + o / columns, k = tap * a.Quads() * 4 + c;
          packed[static_cast<size_t>((block * a.Steps() * kNhwcStep + k) * columns + o % columns)] =
              w[static_cast<size_t>(((int64_t{g} * a.group_outputs + o) * a.group_inputs + c) * taps + tap)];
        }
  return packed;
}

void RunNhwc(const NhwcCase& k, bool parallel) {
  const int out_h = (k.h + 2 * k.ph - k.dh * (k.kh - 1) - 1) / k.sh + 1;
  const int out_w = (k.w + 2 * k.pw - k.dw * (k.kw - 1) - 1) / k.sw + 1;
  const int halo = std::max(k.ph, k.pw), all = k.groups * k.outputs;
  Channels x(k.images, k.h, k.w, k.groups * k.inputs, halo, 1), y(k.images, out_h, out_w, all, 1, 1), r(k.images, out_h, out_w, all, 0, 2);
  x.FillChannels();
  r.FillChannels();
  x.Of(0, 0, 0, 0) = NAN;  // spoils image 0 and no other
  const std::vector<float> w = Randoms(int64_t{all} * k.inputs * k.kh * k.kw);
  const Buffer bias(Randoms(all));
  const ConstMap residual = k.residual ? r.Input() : ConstMap{};
  ConvNhwcF32Args a{x.Input(k.ph, k.pw), nullptr, bias.data, y.Output(), residual, k.images, out_h, out_w, k.kh, k.kw, k.sh, k.sw,
                    k.dh, k.dw, k.groups, k.inputs, k.outputs, k.relu ? 0.0f : -kInfinity, k.relu ? 1.5f : kInfinity,
                    {kNhwcTiles[k.tile][0], kNhwcTiles[k.tile][1], k.segments, 0}};
  const Buffer packed(PackNhwc(w, a));
  a.weight = packed.data;
  if (parallel) {
    Channels partial(k.images, out_h, out_w, k.segments * a.SegmentFloats(), 0);
    ConvNhwcF32Args part = a;
    part.y = partial.Output(), part.residual = {}, part.low = -kInfinity, part.high = kInfinity, part.config.parallel = 1;
    if (const char* wrong = Check(part)) return Fail(wrong);
    Expect(LaunchConvNhwcF32(part, nullptr) == kSuccess, "launch");
    Expect(LaunchSumSegments({partial.Input(), y.Output(), residual, k.images, out_h, out_w, y.c, k.segments, a.low, a.high, 0},
                             nullptr) == kSuccess, "launch of the sums");
  } else {
    if (const char* wrong = Check(a)) return Fail(wrong);
    Expect(LaunchConvNhwcF32(a, nullptr) == kSuccess, "launch");
  }
  const int taps = k.kh * k.kw * k.inputs, quads = a.Quads() * k.kh * k.kw;
  const double n = taps + k.segments + 1, u = 0x1p-24, gamma = n * u / (1 - n * u);
  y.CheckChannels([&](int image, int i, int j, int o) {
    const int g = o / k.outputs;
    float sum = 0.0f;
    double exact = bias.data[o], magnitude = std::fabs(exact);
    for (int s = 0; s < k.segments; ++s) {
      float part = s ? 0.0f : bias.data[o];
      for (int q = SegmentStart(s, a.Steps(), k.segments) * 4; q < SegmentStart(s + 1, a.Steps(), k.segments) * 4 && q < quads; ++q)
        for (int c = q % a.Quads() * 4; c < std::min(q % a.Quads() * 4 + 4, k.inputs); ++c) {
          const int tap = q / a.Quads(), kh = tap / k.kw, kw = tap % k.kw;
          const float in = x.Of(image, i * k.sh + kh * k.dh - k.ph, j * k.sw + kw * k.dw - k.pw, g * k.inputs + c);
          const float weight = w[static_cast<size_t>(((int64_t{o} * k.inputs + c) * k.kh + kh) * k.kw + kw)];
          part = std::fmaf(in, weight, part);
          exact += double{in} * weight;
          magnitude += std::fabs(double{in} * weight);
        }
      sum = s ? sum + part : part;
    }
    if (k.residual) {
      const float add = r.Of(image, i, j, o);
      sum += add;
      exact += add;
      magnitude += std::fabs(double{add});
    }
    Expect(!(std::fabs(sum - exact) > gamma * magnitude), "outside the bound against float64");
    return PlainClamp(sum, a.low, a.high);
  });
}

void NhwcConv() {
  const std::vector<NhwcCase> cases = {
      // images h w kernel stride dilation padding groups in out tile segments residual relu
      {2, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 3, 9, 3, 1, true, true},          // three channels count as four, rows of two images
      {1, 4, 5, 3, 3, 1, 1, 1, 1, 1, 1, 1, 37, 70, 1, 3, true, true},        // two blocks of columns, a last one of 6
      {3, 7, 9, 3, 3, 2, 2, 1, 1, 1, 1, 1, 8, 33, 2, 2, false, true},         // stride, a second block with one column
      {1, 9, 9, 3, 3, 1, 1, 2, 2, 2, 2, 1, 5, 65, 0, 3, true, false},         // dilation, the largest tile
      {1, 2, 2, 1, 1, 1, 1, 1, 1, 0, 0, 1, 64, 16, 3, 4, true, false},        // 1 x 1, four steps of one each
      {5, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 100, 10, 3, 1, false, false},      // a linear layer
      {1, 5, 4, 1, 3, 1, 2, 1, 1, 0, 1, 3, 2, 3, 3, 1, true, true},          // groups that begin anywhere
      {2, 4, 3, 3, 3, 1, 1, 1, 1, 1, 1, 2, 6, 4, 3, 2, false, true},         // inputs that begin anywhere, outputs at fours
      {1, 3, 3, 3, 1, 1, 1, 1, 1, 1, 0, 2, 8, 6, 2, 1, true, false},         // and the other way round
      {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 2, 1, false, false},
  };
  for (size_t n = 0; n < cases.size(); ++n) {
    current = "nhwc conv case " + std::to_string(n);
    RunNhwc(cases[n], false);
    if (cases[n].segments == 1) continue;
    current += " in parallel";
    RunNhwc(cases[n], true);
  }
}

void NhwcDepthwise() {
  struct Case { int images, h, w, kh, kw, s, d, p, channels; };
  for (const Case& k : {Case{2, 5, 7, 3, 3, 1, 1, 1, 9}, Case{1, 8, 6, 3, 3, 2, 1, 1, 33}, Case{1, 6, 5, 5, 5, 1, 1, 2, 32},
                        Case{1, 7, 7, 3, 3, 1, 2, 2, 1}}) {
    current = "nhwc depthwise " + std::to_string(k.kh) + "x" + std::to_string(k.kw) + " of " + std::to_string(k.channels);
    const int out_h = (k.h + 2 * k.p - k.d * (k.kh - 1) - 1) / k.s + 1, out_w = (k.w + 2 * k.p - k.d * (k.kw - 1) - 1) / k.s + 1;
    Channels x(k.images, k.h, k.w, k.channels, k.p, 1), y(k.images, out_h, out_w, k.channels, 1, 2), r(k.images, out_h, out_w, k.channels, 0);
    x.FillChannels();
    r.FillChannels();
    const int lanes = y.c * kTile;
    const Buffer w(Randoms(int64_t{k.kh} * k.kw * lanes)), bias(Randoms(lanes));
    DepthwiseNhwcF32Args a{{x.Input(k.p, k.p), w.data, bias.data, y.Output(), r.Input(), k.images, out_h, out_w, k.kh, k.kw, k.s, k.s,
                            k.d, k.d, y.c, 1, 0.0f, 6.0f, 0}};
    Expect(LaunchDepthwiseNhwcF32(a, nullptr) == kSuccess, "launch");
    y.CheckChannels([&](int n, int i, int j, int o) {
      float sum = bias.data[o];
      for (int kh = 0; kh < k.kh; ++kh)
        for (int kw = 0; kw < k.kw; ++kw)
          sum = std::fmaf(x.Of(n, i * k.s + kh * k.d - k.p, j * k.s + kw * k.d - k.p, o), w.data[(kh * k.kw + kw) * lanes + o], sum);
      return PlainClamp(sum + r.Of(n, i, j, o), 0.0f, 6.0f);
    });
    a.multiplier = 2;
    Expect(Check(a) && LaunchDepthwiseNhwcF32(a, nullptr) == kInvalidValue, "one output per input");
  }
}

void NhwcMoves() {
  current = "nhwc copy: a strided slice with channel padding";
  Channels x(2, 7, 5, 35, 1), padded(2, 3, 3, 45, 1, 1);
  x.FillChannels();
  Expect(LaunchCopyChannelsF32({x.Input(), padded.Output(), 2, 3, 3, 35, 4, 45, 1, 2, 0, 2, 0}, nullptr) == kSuccess, "launch");
  padded.CheckChannels([&](int n, int i, int j, int c) { return c < 4 || c >= 39 ? 0.0f : x.Of(n, 1 + 2 * i, 2 * j, c - 4); });

  current = "nhwc copy: concatenation";
  Channels first(1, 2, 3, 5, 0), second(1, 2, 3, 40, 0), both(1, 2, 3, 45, 1);
  first.FillChannels();
  second.FillChannels();
  Expect(LaunchCopyChannelsF32({first.Input(), both.Output(), 1, 2, 3, 5, 0, 0, 0, 1, 0, 1, 0}, nullptr) == kSuccess, "launch");
  Expect(Bits(both.Of(0, 0, 0, 5)) == kUntouched, "the other operand's channels stay");
  Expect(LaunchCopyChannelsF32({second.Input(), both.Output(), 1, 2, 3, 40, 5, 0, 0, 1, 0, 1, 1}, nullptr) == kSuccess, "launch");
  both.CheckChannels([&](int n, int i, int j, int c) { return c < 5 ? first.Of(n, i, j, c) : second.Of(n, i, j, c - 5); });

  current = "nhwc flatten";
  Channels features(2, 1, 1, 35 * 7 * 5, 0);
  Expect(LaunchFlattenNhwcF32({x.Input(), features.Output(), 2, 7, 5, 35, 0}, nullptr) == kSuccess, "launch");
  features.CheckChannels([&](int n, int, int, int f) { return x.Of(n, f / 5 % 7, f % 5, f / 35); });
}

void NhwcImages() {
  for (const auto& [count, h, w, c, shift] : {std::array{3, 4, 4, 3, 0}, std::array{5, 3, 5, 1, 1}, std::array{1, 2, 9, 37, 3}}) {
    current = "nhwc uint8 images of " + std::to_string(c) + " channels";
    const int values = h * w * c;
    const std::unique_ptr<uint8_t[]> bytes(new uint8_t[static_cast<size_t>(count * values + shift)]);
    for (int k = 0; k < count * values + shift; ++k) bytes[k] = static_cast<uint8_t>(random_bits());
    const Buffer scale(Randoms(c)), offset(Randoms(c));
    Channels y(count, h, w, c, 1, 1);
    Expect(LaunchLoadNhwc({bytes.get() + shift, 0, count, h, w, c, scale.data, offset.data, y.Output(), nullptr, 0}, nullptr) == kSuccess,
           "launch");
    y.CheckChannels([&](int n, int i, int j, int ch) {
      const float product = static_cast<float>(bytes[n * values + (i * w + j) * c + ch + shift]) * scale.data[ch];
      return product + offset.data[ch];
    });
    current = "nhwc float images of " + std::to_string(c) + " channels";
    const Buffer floats(Randoms(int64_t{count} * values)), flags(count);
    floats.data[0] = INFINITY;
    floats.data[count * values - 1] = NAN;
    Channels z(count, h, w, c, 0);
    Expect(LaunchLoadNhwc({floats.data, 1, count, h, w, c, scale.data, offset.data, z.Output(), flags.data, 1}, nullptr) == kSuccess,
           "launch");
    z.CheckChannels([&](int n, int i, int j, int ch) {
      const float product = floats.data[n * values + (ch * h + i) * w + j] * scale.data[ch];
      return product + offset.data[ch];
    });
    for (int n = 0; n < count; ++n) ExpectBits(flags.data[n], n == 0 || n == count - 1 ? NAN : 0.0f, "flag " + std::to_string(n));
  }
  for (const auto& [count, classes] : {std::array{3, 10}, std::array{70, 45}, std::array{1, 1}}) {
    current = "nhwc logits " + std::to_string(count) + " x " + std::to_string(classes);
    Channels x(count, 1, 1, classes, 1);
    x.FillChannels();
    const Buffer flags(std::vector<float>(static_cast<size_t>(count), 0.0f)), out(int64_t{count} * classes);
    flags.data[count - 1] = NAN;
    Expect(LaunchStoreNhwc({x.Input(), flags.data, out.data, count, classes, 0}, nullptr) == kSuccess, "launch");
    for (int n = 0; n < count; ++n)
      for (int k = 0; k < classes; ++k) ExpectBits(out.data[n * classes + k], n == count - 1 ? NAN : x.Of(n, 0, 0, k), "logit");
    Expect(LaunchStoreNhwc({x.Input(), nullptr, out.data, count, classes, 1}, nullptr) == kSuccess, "launch");
    ExpectBits(out.data[count * classes - 1], x.Of(count - 1, 0, 0, classes - 1), "logit without flags");
  }
}

void NhwcArguments() {
  current = "nhwc arguments";
  float some[4];
  ConvNhwcF32Args a{};
  a.x.data = a.weight = a.bias = some;
  a.y.data = some;
  a.images = a.out_h = a.out_w = a.kernel_h = a.kernel_w = a.stride_h = a.stride_w = a.dilation_h = a.dilation_w = 1;
  a.groups = 1, a.group_inputs = 33, a.group_outputs = 9;
  a.config = {64, 64, 3, 0};
  Expect(!Check(a), "right ones are taken");
  const auto refused = [&](const char* what, const std::function<void(ConvNhwcF32Args&)>& change) {
    ConvNhwcF32Args b = a;
    change(b);
    Expect(Check(b) && LaunchConvNhwcF32(b, nullptr) == kInvalidValue, what);
  };
  refused("no weights", [](auto& b) { b.weight = nullptr; });
  refused("no images", [](auto& b) { b.images = 0; });
  refused("a tile that is not compiled", [](auto& b) { b.config.rows = 32; });
  refused("groups that begin anywhere in a large tile", [](auto& b) { b.groups = 2; });
  refused("more segments than steps", [](auto& b) { b.config.segments = 4; });
  refused("one segment in parallel", [](auto& b) { b.config = {64, 64, 1, 1}; });
  refused("a residual of partial sums", [&](auto& b) { b.config.parallel = 1, b.residual.data = some; });
  refused("too many pixels", [](auto& b) { b.images = 1 << 15, b.out_h = b.out_w = 1 << 8; });
}

}  // namespace
