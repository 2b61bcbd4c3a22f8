// Bindings of the convolutions with split operands (split.h): one function for each arithmetic.
#include "bindings.h"

namespace hce::cuda {

void BindSplit(py::module_& m) {
  m.attr("SPLIT_PIXELS") =
      std::map<int, int>{{1, kSplitPixels[1]}, {2, kSplitPixels[2]}, {3, kSplitPixels[3]}, {4, kSplitPixels[4]}};
  static_assert(kSplitOctets == 4);
  const auto bind = [&](const char* name, Arithmetic arithmetic) {
    m.def(
        name,
        [name, arithmetic](int device, uintptr_t stream, const Ref& x, bool x_split, uintptr_t weight, uintptr_t bias,
                           const std::optional<Ref>& y, const std::optional<Ref>& split, const std::optional<Ref>& residual,
                           const std::array<int32_t, 11>& s, float factor, const Limits& limits,
                           const std::array<int32_t, 4>& c) {
          Run(name, device, stream,
              ConvSplitArgs{arithmetic,
                            In(x),
                            x_split,
                            At<const float>(weight),
                            At<const float>(bias),
                            y ? Out(*y) : Map{},
                            split ? Out(*split) : Map{},
                            In(residual),
                            s[0],
                            s[1],
                            s[2],
                            s[3],
                            s[4],
                            s[5],
                            s[6],
                            s[7],
                            s[8],
                            s[9],
                            s[10],
                            factor,
                            limits[0],
                            limits[1],
                            {c[0], c[1], c[2], c[3]}},
              LaunchConv2dSplit);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("x_split"), py::arg("weight"),
        py::arg("bias"), py::arg("y"), py::arg("split"), py::arg("residual"), py::arg("shape"), py::arg("factor"),
        py::arg("limits"), py::arg("config"),
        "shape: tiles, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, inputs, outputs.  factor: "
        "what "
        "undoes the scale of the weights.  config: octets, channel_warps, pixel_warps, blocks.  SPLIT_PIXELS: pixels by "
        "octets.");
  };
  bind("conv2d_tf32x3", Arithmetic::kTf32x3);
  bind("conv2d_fp16x3", Arithmetic::kFp16x3);
  bind("conv2d_bf16x3", Arithmetic::kBf16x3);
}

}  // namespace hce::cuda
