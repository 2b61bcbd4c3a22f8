// The Python module hce_engine._cuda: starts kernels and asks the CUDA runtime about devices. No torch: pointers and
// streams are integers, and whoever owns the memory checks its size, dtype and device before they become that.
//
// hce_engine._cuda_native imports it. With HCE_HOST it is built without CUDA and runs the same kernels on the CPU's
// memory.
#include "bindings.h"

#include "pack.h"

using namespace hce::cuda;

namespace {

void BindKernels(py::module_& m) {
  m.attr("TILE") = kTile;
  m.attr("GRID_SHARES") = kGridShares;
  m.attr("CONV_WARPS") = kConvWarps;
  m.attr("CONV_CHANNELS") = std::map<int, int>{{1, kConvChannels[1]}, {2, kConvChannels[2]}};
  m.def("conv_channels", &ConvChannels, py::arg("outputs"), py::arg("limit"),
        "Channels of the register tile when the outputs of a group are cut evenly into blocks of at most `limit`.");
  m.def("pack_conv_weights",
        [](const FloatArray& weight, int groups, int channels) {
          if (weight.ndim() != 4 || groups < 1 || weight.shape(0) < 1 || weight.shape(0) % groups || channels < 1)
            throw std::invalid_argument("pack_conv_weights: weight [groups * outputs][inputs][rows][columns] expected");
          const std::vector<float> packed = PackConvWeights(
              weight.data(), groups, static_cast<int>(weight.shape(0) / groups), static_cast<int>(weight.shape(1)),
              static_cast<int>(weight.shape(2)), static_cast<int>(weight.shape(3)), channels);
          return FloatArray(static_cast<py::ssize_t>(packed.size()), packed.data());
        },
        py::arg("weight").noconvert(), py::arg("groups"), py::arg("channels"),
        "Weights [outputs, inputs of a group, rows, columns] in the layout of conv2d_f32 and linear_f32.");
  m.def("conv2d_f32",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t weight, uintptr_t bias, const Ref& y,
           const std::optional<Ref>& residual, const std::array<int32_t, 12>& s, const Limits& limits,
           const std::array<int32_t, 6>& config) {
          Run("conv2d_f32", device, stream,
              ConvF32Args{In(x), At<const float>(weight), At<const float>(bias), Out(y), In(residual), s[0], s[1], s[2], s[3],
                          s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], limits[0], limits[1], Config(config)},
              LaunchConv2dF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
        py::arg("residual"), py::arg("shape"), py::arg("limits"), py::arg("config"),
        "shape: tiles, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups, inputs and "
        "outputs of a group.  config: pixels, channels, channel_warps, pixel_warps, chunk_lines, blocks.");
  m.def("depthwise_f32",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t weight, uintptr_t bias, const Ref& y,
           const std::optional<Ref>& residual, const std::array<int32_t, 11>& s, const Limits& limits, int blocks) {
          Run("depthwise_f32", device, stream,
              DepthwiseF32Args{In(x), At<const float>(weight), At<const float>(bias), Out(y), In(residual), s[0], s[1], s[2],
                               s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], limits[0], limits[1], blocks},
              LaunchDepthwiseF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
        py::arg("residual"), py::arg("shape"), py::arg("limits"), py::arg("blocks") = 0,
        "shape: tiles, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, outputs, multiplier.");
  m.def("linear_f32",
        [](int device, uintptr_t stream, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y,
           const std::array<int32_t, 3>& s, const Limits& limits, const std::array<int32_t, 6>& config) {
          Run("linear_f32", device, stream,
              LinearF32Args{At<const float>(x), At<const float>(weight), At<const float>(bias), At<float>(y), s[0], s[1], s[2],
                            limits[0], limits[1], Config(config)},
              LaunchLinearF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
        py::arg("shape"), py::arg("limits"), py::arg("config"), "shape: tiles, inputs, outputs.");
  m.attr("WINOGRAD_CHANNELS") = std::map<std::pair<int, int>, int>{
      {{2, 1}, kWinogradChannels[2][1]}, {{2, 2}, kWinogradChannels[2][2]},
      {{4, 1}, kWinogradChannels[4][1]}, {{4, 2}, kWinogradChannels[4][2]}};
  m.attr("WINOGRAD_GROUPS") = std::map<int, int>{{2, kWinogradGroups[2]}, {4, kWinogradGroups[4]}};
  m.def("winograd_shared_bytes",
        [](const std::array<int32_t, 7>& c, int inputs, int outputs) {
          WinogradF32Args a{};
          a.tiles = 1, a.out_h = a.out_w = c[0], a.inputs = inputs, a.outputs = outputs;
          a.config = {c[0], c[1], c[2], c[3], c[4], c[5], c[6]};
          return SharedBytes(a);
        },
        py::arg("config"), py::arg("inputs"), py::arg("outputs"), "Shared memory of a thread block; config as of winograd_f32.");
  m.def("winograd_f32",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t weight, uintptr_t bias, const Ref& y,
           const std::optional<Ref>& residual, const std::array<int32_t, 5>& s, const Limits& limits,
           const std::array<int32_t, 7>& c) {
          Run("winograd_f32", device, stream,
              WinogradF32Args{In(x), At<const float>(weight), At<const float>(bias), Out(y), In(residual), s[0], s[1], s[2], s[3],
                              s[4], limits[0], limits[1], {c[0], c[1], c[2], c[3], c[4], c[5], c[6]}},
              LaunchWinogradF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
        py::arg("residual"), py::arg("shape"), py::arg("limits"), py::arg("config"),
        "shape: tiles, out_h, out_w, inputs, outputs.  config: output, tiles, channels, channel_groups, tile_groups, chunk, "
        "blocks.  WINOGRAD_CHANNELS: most channels by (output, tiles); WINOGRAD_GROUPS: most groups by output.");
  m.def("pool_f32",
        [](int device, uintptr_t stream, const std::string& kind, const Ref& x, const Ref& y, const std::array<int32_t, 6>& s,
           const std::array<int32_t, 6>& window, bool count_include_pad, int blocks) {
          if (kind != "max" && kind != "average") throw std::invalid_argument("pool_f32: max or average expected, got " + kind);
          Run("pool_f32", device, stream,
              PoolF32Args{In(x), Out(y), s[0], s[1], s[2], s[3], s[4], s[5], window[0], window[1], window[2], window[3],
                          window[4], window[5], count_include_pad, kind == "max" ? PoolKind::kMax : PoolKind::kAverage,
                          blocks},
              LaunchPoolF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("kind"), py::arg("x"), py::arg("y"), py::arg("shape"),
        py::arg("window"), py::arg("count_include_pad") = true, py::arg("blocks") = 0,
        "shape: tiles, in_h, in_w, out_h, out_w, channels.  window: kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w.");
  m.def("add_f32",
        [](int device, uintptr_t stream, const Ref& a, const std::optional<Ref>& b, const Ref& y,
           const std::array<int32_t, 4>& s, float scale, const Limits& limits, int blocks) {
          Run("add_f32", device, stream,
              AddF32Args{In(a), In(b), Out(y), s[0], s[1], s[2], s[3], scale, limits[0], limits[1], blocks}, LaunchAddF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("a"), py::arg("b"), py::arg("y"), py::arg("shape"),
        py::arg("scale"), py::arg("limits"), py::arg("blocks") = 0, "shape: tiles, h, w, channels.");
  m.def("copy_f32",
        [](int device, uintptr_t stream, const Ref& x, const Ref& y, const std::array<int32_t, 4>& s,
           const std::array<int32_t, 2>& to, const std::array<int32_t, 4>& pixels, int blocks) {
          Run("copy_f32", device, stream,
              CopyF32Args{In(x), Out(y), s[0], s[1], s[2], s[3], to[0], to[1], pixels[0], pixels[1], pixels[2], pixels[3],
                          blocks},
              LaunchCopyF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("y"), py::arg("shape"), py::arg("to"),
        py::arg("pixels"), py::arg("blocks") = 0,
        "shape: tiles, out_h, out_w, channels.  to: channel_to, zero_to.  pixels: row_start, row_step, column_start, "
        "column_step.");
  m.def("flatten_f32",
        [](int device, uintptr_t stream, const Ref& x, uintptr_t y, const std::array<int32_t, 4>& s, int blocks) {
          Run("flatten_f32", device, stream, FlattenF32Args{In(x), At<float>(y), s[0], s[1], s[2], s[3], blocks},
              LaunchFlattenF32);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("y"), py::arg("shape"),
        py::arg("blocks") = 0, "shape: tiles, h, w, channels.");
  m.def("load_images",
        [](int device, uintptr_t stream, uintptr_t images, bool from_float, const std::array<int32_t, 4>& s, uintptr_t scale,
           uintptr_t offset, const Ref& y, uintptr_t flags, int blocks) {
          Run("load_images", device, stream,
              LoadImagesArgs{At<const void>(images), from_float, s[0], s[1], s[2], s[3], At<const float>(scale),
                             At<const float>(offset), Out(y), At<float>(flags), blocks},
              LaunchLoadImages);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("images"), py::arg("from_float"), py::arg("shape"),
        py::arg("scale"), py::arg("offset"), py::arg("y"), py::arg("flags") = 0, py::arg("blocks") = 0,
        "shape: images, h, w, c.  flags: address of float32 [images], or 0.");
  m.def("store_logits",
        [](int device, uintptr_t stream, uintptr_t x, uintptr_t out, int count, int classes, uintptr_t flags, int blocks) {
          Run("store_logits", device, stream,
              StoreLogitsArgs{At<const float>(x), At<const float>(flags), At<float>(out), count, classes, blocks},
              LaunchStoreLogits);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("x"), py::arg("out"), py::arg("count"),
        py::arg("classes"), py::arg("flags") = 0, py::arg("blocks") = 0);
  m.def("ensemble_mean",
        [](int device, uintptr_t stream, const std::vector<uintptr_t>& members, uintptr_t out, int64_t elements, int blocks) {
          EnsembleMeanArgs args{};
          if (members.empty() || members.size() > kMaxMembers)
            throw std::invalid_argument("ensemble_mean: 1 to 16 members expected, got " + std::to_string(members.size()));
          for (size_t n = 0; n < members.size(); ++n) args.members[n] = At<const float>(members[n]);
          args.n = static_cast<int32_t>(members.size());
          args.factor = 1.0f / static_cast<float>(members.size());
          args.out = At<float>(out);
          args.elements = elements;
          args.blocks = blocks;
          Run("ensemble_mean", device, stream, args, LaunchEnsembleMean);
        },
        py::arg("device"), py::arg("stream"), py::kw_only(), py::arg("members"), py::arg("out"), py::arg("elements"),
        py::arg("blocks") = 0);
}

#if !defined(HCE_HOST)
void BindDevices(py::module_& m) {
  m.def("runtime_version", [] {
    int version = 0;
    Require("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&version));
    return version;
  }, "Of the CUDA runtime in this module, as 1000 * major + 10 * minor.");
  m.def("driver_version", [] {
    int version = 0;
    Require("cudaDriverGetVersion", cudaDriverGetVersion(&version));
    return version;
  }, "Newest CUDA version that the driver supports; 0 without a driver.");
  m.def("device_count", [] {
    int count = 0;
    Require("cudaGetDeviceCount", cudaGetDeviceCount(&count));
    return count;
  }, "Raises CudaError where there is no driver or no device.");
  m.def("device_properties", [](int device) {
    cudaDeviceProp p;
    Require("cudaGetDeviceProperties", cudaGetDeviceProperties(&p, device));
    int clock_khz = 0, memory_clock_khz = 0;
    Require("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, device));
    Require("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&memory_clock_khz, cudaDevAttrMemoryClockRate, device));
    py::dict d;
    d["name"] = p.name;
    d["compute_capability"] = py::make_tuple(p.major, p.minor);
    d["multiprocessors"] = p.multiProcessorCount;
    d["memory_bytes"] = p.totalGlobalMem;
    d["l2_bytes"] = p.l2CacheSize;
    d["shared_bytes_per_multiprocessor"] = p.sharedMemPerMultiprocessor;
    d["shared_bytes_per_block"] = p.sharedMemPerBlockOptin;
    d["registers_per_multiprocessor"] = p.regsPerMultiprocessor;
    d["clock_khz"] = clock_khz;
    d["memory_clock_khz"] = memory_clock_khz;
    d["memory_bus_bits"] = p.memoryBusWidth;
    return d;
  }, py::arg("device"));
  m.def("mem_get_info", [](int device) {
    OnDevice on(device);
    size_t free_bytes = 0, total_bytes = 0;
    Require("cudaMemGetInfo", cudaMemGetInfo(&free_bytes, &total_bytes));
    return py::make_tuple(free_bytes, total_bytes);
  }, py::arg("device"), "(free, total) bytes.");
  m.def("synchronize", [](int device, uintptr_t stream) {
    OnDevice on(device);
    Status status;
    {
      py::gil_scoped_release release;
      status = cudaStreamSynchronize(reinterpret_cast<Stream>(stream));
    }
    Require("cudaStreamSynchronize", status);
  }, py::arg("device"), py::arg("stream"));
  m.def("error_name", [](int code) { return cudaGetErrorName(static_cast<Status>(code)); }, py::arg("code"));
  m.def("error_string", [](int code) { return cudaGetErrorString(static_cast<Status>(code)); }, py::arg("code"));
}
#endif

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA C++ kernels of HCE Engine";
  cuda_error = PyErr_NewExceptionWithDoc("hce_engine._cuda.CudaError",
                                         "A call of the CUDA runtime failed. name: such as cudaErrorInvalidValue; code: its number.",
                                         PyExc_RuntimeError, nullptr);
  m.attr("CudaError") = py::reinterpret_borrow<py::object>(cuda_error);
  BindKernels(m);
  BindNhwc(m);
  BindSplit(m);
#if !defined(HCE_HOST)
  BindDevices(m);
#endif
}
