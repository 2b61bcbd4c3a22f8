// The kernels on NHWC maps (nhwc.h) as functions of hce_engine._cuda.
#include "bindings.h"

namespace hce::cuda {

void BindNhwc(py::module_& m) {
  py::list tiles;
  for (const auto& tile : kNhwcTiles) tiles.append(py::make_tuple(tile[0], tile[1]));
  m.attr("NHWC_TILES") = py::tuple(tiles);
  m.attr("NHWC_STEP") = kNhwcStep;
  m.def("conv2d_nhwc_f32",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t weight, uintptr_t bias, const Ref& y,
           const std::optional<Ref>& residual, const std::array<int32_t, 12>& s, const Limits& limits,
           const std::array<int32_t, 4>& config) {
          Run("conv2d_nhwc_f32", device, stream,
              ConvNhwcF32Args{In(x), At<const float>(weight), At<const float>(bias), Out(y), In(residual), s[0], s[1], s[2],
                              s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], limits[0], limits[1],
                              {config[0], config[1], config[2], config[3]}},
              LaunchConvNhwcF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
        py::arg("residual"), py::arg("shape"), py::arg("limits"), py::arg("config"),
        "shape: images, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups, inputs and "
        "outputs of a group.  config: rows, columns, segments, parallel.");
  m.def("sum_segments_f32",
        [](int device, uintptr_t stream, const Ref& x, const Ref& y, const std::optional<Ref>& residual,
           const std::array<int32_t, 5>& s, const Limits& limits, int blocks) {
          Run("sum_segments_f32", device, stream,
              SumSegmentsArgs{In(x), Out(y), In(residual), s[0], s[1], s[2], s[3], s[4], limits[0], limits[1], blocks},
              LaunchSumSegments);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("y"), py::arg("residual"),
        py::arg("shape"), py::arg("limits"), py::arg("blocks") = 0, "shape: images, h, w, lines, segments.");
  m.def("depthwise_nhwc_f32",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t weight, uintptr_t bias, const Ref& y,
           const std::optional<Ref>& residual, const std::array<int32_t, 10>& s, const Limits& limits, int blocks) {
          Run("depthwise_nhwc_f32", device, stream,
              DepthwiseNhwcF32Args{{In(x), At<const float>(weight), At<const float>(bias), Out(y), In(residual), s[0], s[1],
                                    s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], 1, limits[0], limits[1], blocks}},
              LaunchDepthwiseNhwcF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
        py::arg("residual"), py::arg("shape"), py::arg("limits"), py::arg("blocks") = 0,
        "shape: images, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, lines.");
  m.def("copy_channels_f32",
        [](int device, uintptr_t stream, const Ref& x, const Ref& y, const std::array<int32_t, 4>& s,
           const std::array<int32_t, 2>& to, const std::array<int32_t, 4>& pixels, int blocks) {
          Run("copy_channels_f32", device, stream,
              CopyChannelsF32Args{In(x), Out(y), s[0], s[1], s[2], s[3], to[0], to[1], pixels[0], pixels[1], pixels[2],
                                  pixels[3], blocks},
              LaunchCopyChannelsF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("y"), py::arg("shape"), py::arg("to"),
        py::arg("pixels"), py::arg("blocks") = 0,
        "shape: images, out_h, out_w, channels.  to and pixels: as copy_f32, in channels.");
  m.def("flatten_nhwc_f32",
        [](int device, uintptr_t stream, const Ref& x, const Ref& y, const std::array<int32_t, 4>& s, int blocks) {
          Run("flatten_nhwc_f32", device, stream, FlattenNhwcF32Args{In(x), Out(y), s[0], s[1], s[2], s[3], blocks},
              LaunchFlattenNhwcF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("y"), py::arg("shape"),
        py::arg("blocks") = 0, "shape: images, h, w, channels.");
  m.def("load_images_nhwc",
        [](int device, uintptr_t stream, uintptr_t images, bool from_float, const std::array<int32_t, 4>& s, uintptr_t scale,
           uintptr_t offset, const Ref& y, uintptr_t flags, int blocks) {
          Run("load_images_nhwc", device, stream,
              LoadNhwcArgs{At<const void>(images), from_float, s[0], s[1], s[2], s[3], At<const float>(scale),
                           At<const float>(offset), Out(y), At<float>(flags), blocks},
              LaunchLoadNhwc);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("images"), py::arg("from_float"), py::arg("shape"),
        py::arg("scale"), py::arg("offset"), py::arg("y"), py::arg("flags") = 0, py::arg("blocks") = 0,
        "shape: images, h, w, c.  flags: address of float32 [images], or 0.");
  m.def("store_logits_nhwc",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t out, int count, int classes, uintptr_t flags, int blocks) {
          Run("store_logits_nhwc", device, stream,
              StoreNhwcArgs{In(x), At<const float>(flags), At<float>(out), count, classes, blocks}, LaunchStoreNhwc);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("out"), py::arg("count"),
        py::arg("classes"), py::arg("flags") = 0, py::arg("blocks") = 0);
}

}  // namespace hce::cuda
