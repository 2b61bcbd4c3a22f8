// Kernels on whole lines: halos, changes of lanes, pooling, element-wise operations, copies. Contracts in ../lines.h. The loops are plain:
// a line is 16 floats or 64 codes, and the compiler vectorizes them for the instruction set of each translation unit.
#pragma once
#include "../lines.h"
#include "epilogue_u8.h"

namespace hce::kernels {

template <class S>
void MoveLanes(const MoveLanesArgs& a) {
  for (int64_t k = 0; k < a.span_count; ++k) {
    const LaneSpan& span = a.spans[k];
    uint8_t* to = a.to + span.to;
    if (span.lanes == nullptr) {
      for (int p = 0; p < span.pixels; ++p)
        for (int l = 0; l < a.lines; ++l, to += kLineBytes) {
          const auto v = S::SetI(static_cast<int32_t>(a.pattern[l]));
          for (int n = 0; n < kTile; n += S::kLanes) S::StoreI(to + n * 4, v);
        }
      continue;
    }
    const uint8_t* from = a.from + span.from;
    const typename S::LaneOrder order = S::LoadLaneOrder(span.lanes + a.group * kTile);
    const int64_t bytes = int64_t{span.pixels} * a.lines * kLineBytes;
    if (span.keep || a.keep) {
      for (int64_t at = 0; at < bytes; at += kLineBytes) S::MergeLanes(to + at, from + at, order);
    } else {
      for (int p = 0; p < span.pixels; ++p)
        for (int l = 0; l < a.lines; ++l, to += kLineBytes, from += kLineBytes) S::MoveLanes(to, from, order, a.pattern[l]);
    }
  }
}

// The part of a pooling window that lies inside the map.
struct Window {
  int row, row_end, column, column_end;
};

template <class S>
inline Window PoolWindow(const PoolArgs& a, int i, int j) {
  const int r = i * a.stride_h - a.pad_h, c = j * a.stride_w - a.pad_w;
  return {r < 0 ? 0 : r, r + a.kernel_h > a.in_h ? a.in_h : r + a.kernel_h,
          c < 0 ? 0 : c, c + a.kernel_w > a.in_w ? a.in_w : c + a.kernel_w};
}

template <class S>
void MaxPoolF32(const PoolArgs& a) {
  for (int i = 0; i < a.out.h; ++i)
    for (int j = 0; j < a.out.w; ++j) {
      const Window w = PoolWindow<S>(a, i, j);
      for (int l = 0; l < a.out.lines; ++l) {
        for (int lane = 0; lane < kTile; lane += S::kLanes) {
          auto best = S::Set(-__builtin_inff());
          for (int r = w.row; r < w.row_end; ++r)
            for (int c = w.column; c < w.column_end; ++c)
              best = S::MaxOrNan(
                  best, S::Load(reinterpret_cast<const float*>(a.x.data + r * a.x.row + c * a.x.pixel + l * kLineBytes) + lane));
          S::Store(reinterpret_cast<float*>(a.y.data + i * a.y.row + j * a.y.pixel + l * kLineBytes) + lane, best);
        }
      }
    }
}

template <class S>
void MaxPoolU8(const PoolArgs& a) {
  for (int i = 0; i < a.out.h; ++i)
    for (int j = 0; j < a.out.w; ++j) {
      const Window w = PoolWindow<S>(a, i, j);
      for (int l = 0; l < a.out.lines; ++l) {
        uint8_t best[kLineBytes] = {};
        for (int r = w.row; r < w.row_end; ++r)
          for (int c = w.column; c < w.column_end; ++c) {
            const uint8_t* x = a.x.data + r * a.x.row + c * a.x.pixel + l * kLineBytes;
            for (int n = 0; n < kLineBytes; ++n) best[n] = x[n] > best[n] ? x[n] : best[n];
          }
        __builtin_memcpy(a.y.data + i * a.y.row + j * a.y.pixel + l * kLineBytes, best, kLineBytes);
      }
    }
}

template <class S>
void AvgPoolF32(const PoolArgs& a) {
  for (int i = 0; i < a.out.h; ++i)
    for (int j = 0; j < a.out.w; ++j) {
      const Window w = PoolWindow<S>(a, i, j);
      const int inside = (w.row_end - w.row) * (w.column_end - w.column);
      const float count = static_cast<float>(a.count_include_pad ? a.kernel_h * a.kernel_w : inside);
      for (int l = 0; l < a.out.lines; ++l) {
        float sum[kTile] = {};
        for (int r = w.row; r < w.row_end; ++r)
          for (int c = w.column; c < w.column_end; ++c) {
            const float* x = reinterpret_cast<const float*>(a.x.data + r * a.x.row + c * a.x.pixel + l * kLineBytes);
            for (int n = 0; n < kTile; ++n) sum[n] += x[n];
          }
        float* y = reinterpret_cast<float*>(a.y.data + i * a.y.row + j * a.y.pixel + l * kLineBytes);
        for (int n = 0; n < kTile; ++n) y[n] = sum[n] / count;
      }
    }
}

template <class S>
inline typename S::F Scaled(typename S::I v, float multiplier) {
  return S::Mul(S::ToFloat(v), S::Set(multiplier));
}

// One line of codes from the sums of its four channels.
template <class S>
inline void StoreAverages(const int32_t (&sum)[4][kTile], float multiplier, const CodeRange& range, uint8_t* y) {
  const auto low = S::Set(range.low), high = S::Set(range.high);
  for (int lane = 0; lane < kTile; lane += S::kLanes) {
    typename S::I codes[4];
    for (int k = 0; k < 4; ++k)
      codes[k] = S::AddI(S::Round(S::Clamp(Scaled<S>(S::LoadI(&sum[k][lane]), multiplier), low, high)), S::SetI(range.zero_point));
    S::StoreI(y + lane * 4, PackFour<S>(codes));
  }
}

template <class S>
void AvgPoolU8(const PoolArgs& a) {
  alignas(64) int32_t sum[4][kTile];
  for (int i = 0; i < a.out.h; ++i)
    for (int j = 0; j < a.out.w; ++j) {
      const Window w = PoolWindow<S>(a, i, j);
      const int zero = a.zero_point_in * (w.row_end - w.row) * (w.column_end - w.column);
      for (int l = 0; l < a.out.lines; ++l) {
        for (auto& channel : sum)
          for (int n = 0; n < kTile; ++n) channel[n] = -zero;
        for (int r = w.row; r < w.row_end; ++r)
          for (int c = w.column; c < w.column_end; ++c) {
            const uint8_t* x = a.x.data + r * a.x.row + c * a.x.pixel + l * kLineBytes;
            for (int lane = 0; lane < kTile; lane += S::kLanes) {
              auto v = S::LoadI(x + lane * 4);
              for (int k = 0; k < 4; ++k) {
                S::StoreI(&sum[k][lane], S::AddI(S::LoadI(&sum[k][lane]), S::AndI(v, S::SetI(0xff))));
                v = S::template ShiftRight<8>(v);
              }
            }
          }
        StoreAverages<S>(sum, a.multiplier, a.range, a.y.data + i * a.y.row + j * a.y.pixel + l * kLineBytes);
      }
    }
}

template <class S>
void AveragesF32(const AveragesArgs& a) {
  const float count = static_cast<float>(a.h * a.w);
  for (int l = 0; l < a.lines; ++l) {
    float* y = reinterpret_cast<float*>(a.y + l * kLineBytes);
    for (int n = 0; n < kTile; n += S::kLanes) S::Store(y + n, S::Set(0.0f));
    for (int n = 0; n < a.images; ++n) {
      const uint8_t* x = a.x + n * a.from_image + l * kLineBytes;
      float sum = 0.0f;
      for (int r = 0; r < a.h; ++r)
        for (int c = 0; c < a.w; ++c) sum += *reinterpret_cast<const float*>(x + a.from_row[r] + a.from_column[c]);
      y[n] = sum / count;
    }
  }
}

template <class S>
void AveragesU8(const AveragesArgs& a) {
  alignas(64) int32_t sum[4][kTile];
  const int zero = a.zero_point_in * a.h * a.w;
  for (int l = 0; l < a.lines; ++l) {
    for (auto& channel : sum)
      for (int n = 0; n < kTile; ++n) channel[n] = -zero;
    for (int n = 0; n < a.images; ++n) {
      const uint8_t* x = a.x + n * a.from_image + l * kLineBytes;
      int32_t s[4] = {};
      for (int r = 0; r < a.h; ++r)
        for (int c = 0; c < a.w; ++c)
          for (int k = 0; k < 4; ++k) s[k] += x[a.from_row[r] + a.from_column[c] + k];
      for (int k = 0; k < 4; ++k) sum[k][n] += s[k];
    }
    StoreAverages<S>(sum, a.multiplier, a.range, a.y + l * kLineBytes);
  }
}

template <class S>
void AddF32(const AddF32Args& a) {
  const auto scale = S::Set(a.scale), low = S::Set(a.low), high = S::Set(a.high);
  for (int i = 0; i < a.extent.h; ++i)
    for (int j = 0; j < a.extent.w; ++j)
      for (int n = 0; n < a.extent.lines * kTile; n += S::kLanes) {
        auto v = S::Load(reinterpret_cast<const float*>(a.a.data + i * a.a.row + j * a.a.pixel) + n);
        if (a.b.data) v = S::Add(v, S::Load(reinterpret_cast<const float*>(a.b.data + i * a.b.row + j * a.b.pixel) + n));
        S::Store(reinterpret_cast<float*>(a.y.data + i * a.y.row + j * a.y.pixel) + n, S::Clamp(S::Mul(v, scale), low, high));
      }
}

template <class S>
void AddU8(const AddU8Args& a) {
  const auto low = S::Set(a.range.low), high = S::Set(a.range.high);
  const auto mask = S::SetI(0xff);
  for (int i = 0; i < a.extent.h; ++i)
    for (int j = 0; j < a.extent.w; ++j)
      for (int64_t n = 0; n < a.extent.lines * kLineBytes; n += S::kLanes * 4) {
        auto va = S::LoadI(a.a.data + i * a.a.row + j * a.a.pixel + n);
        auto vb = S::LoadI(a.b.data + i * a.b.row + j * a.b.pixel + n);
        typename S::I codes[4];
        for (int k = 0; k < 4; ++k) {
          const auto ra = S::SubI(S::AndI(va, mask), S::SetI(a.zero_point_a));
          const auto rb = S::SubI(S::AndI(vb, mask), S::SetI(a.zero_point_b));
          const auto v = S::Add(Scaled<S>(ra, a.multiplier_a), Scaled<S>(rb, a.multiplier_b));
          codes[k] = S::AddI(S::Round(S::Clamp(v, low, high)), S::SetI(a.range.zero_point));
          va = S::template ShiftRight<8>(va);
          vb = S::template ShiftRight<8>(vb);
        }
        S::StoreI(a.y.data + i * a.y.row + j * a.y.pixel + n, PackFour<S>(codes));
      }
}

template <class S>
void RecodeU8(const RecodeArgs& a) {
  for (int i = 0; i < a.extent.h; ++i)
    for (int j = 0; j < a.extent.w; ++j)
      for (int64_t n = 0; n < a.extent.lines * kLineBytes; n += S::kLanes * 4)
        S::StoreI(a.y.data + i * a.y.row + j * a.y.pixel + n,
                  RecodedLine<S>(S::LoadI(a.x.data + i * a.x.row + j * a.x.pixel + n), a.recode));
}

// Channel `from` of the pixel at x becomes channel `to` of the pixel at y.
template <class S>
inline void CopyChannel(const uint8_t* x, int64_t from, uint8_t* y, int64_t to, bool codes) {
  if (!codes) {
    __builtin_memcpy(y + to * kLineBytes, x + from * kLineBytes, kLineBytes);
    return;
  }
  x += from / 4 * kLineBytes + from % 4;
  y += to / 4 * kLineBytes + to % 4;
  for (int n = 0; n < kTile; ++n) y[n * 4] = x[n * 4];
}

template <class S>
inline void FillLines(uint8_t* y, int64_t first, int64_t end, uint32_t word) {
  const auto v = S::SetI(static_cast<int32_t>(word));
  for (int64_t n = first * kLineBytes; n < end * kLineBytes; n += S::kLanes * 4) S::StoreI(y + n, v);
}

template <class S>
void Copy(const CopyArgs& args) {
  const CopyArgs a = args;  // a copy that byte stores cannot alias
  // Whole lines where the channels of a unit stay together, else channel by channel into lines that are filled before.
  const bool whole = !a.codes || (a.channel_to % 4 == 0 && a.channels % 4 == 0);
  const int64_t per_line = a.codes ? 4 : 1, first = a.channel_to / per_line, lines = a.channels / per_line;
  for (int i = 0; i < a.out_h; ++i)
    for (int j = 0; j < a.out_w; ++j) {
      const uint8_t* x = a.x.data + (a.row_start + int64_t{i} * a.row_step) * a.x.row +
                         (a.column_start + int64_t{j} * a.column_step) * a.x.pixel;
      uint8_t* y = a.y.data + i * a.y.row + j * a.y.pixel;
      if (a.fills) {
        FillLines<S>(y, 0, whole ? first : a.out_lines, a.word);
        if (whole) FillLines<S>(y, first + lines, a.out_lines, a.word);
      }
      if (whole)
        for (int64_t n = 0; n < lines * kLineBytes; n += S::kLanes * 4) S::StoreI(y + first * kLineBytes + n, S::LoadI(x + n));
      else
        for (int c = 0; c < a.channels; ++c) CopyChannel<S>(x, c, y, int64_t{a.channel_to} + c, true);
    }
}

template <class S>
void Flatten(const FlattenArgs& a) {
  for (int i = 0; i < a.h; ++i)
    for (int j = 0; j < a.w; ++j)
      for (int c = 0; c < a.channels; ++c)
        CopyChannel<S>(a.x.data + i * a.x.row + j * a.x.pixel, c, a.y, (int64_t{c} * a.h + i) * a.w + j, a.codes);
}

}  // namespace hce::kernels
