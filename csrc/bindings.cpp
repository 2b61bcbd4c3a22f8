// The Python module hce_engine._C: checks what crosses the border, releases the GIL, calls.
//
// Arrays are refused, never converted: a wrong dtype or stride is a TypeError. hce_engine.plan builds programs, and
// hce_engine.backends.cpu runs them; nothing else should use this module.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/cpu_features.h"
#include "cpu/peaks.h"
#include "cpu/steps.h"

namespace py = pybind11;
using namespace hce;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::vector<T> ToVector(const Array<T>& a) {
  return std::vector<T>(a.data(), a.data() + a.size());
}

// The array's own memory, which the result keeps alive.
template <class T>
Shared<T> ToShared(const Array<T>& a) {
  std::shared_ptr<py::object> owner(new py::object(a), [](py::object* object) {
    py::gil_scoped_acquire lock;
    delete object;
  });
  return {std::shared_ptr<const T>(std::move(owner), a.data()), static_cast<size_t>(a.size())};
}

using Ref = std::tuple<int64_t, int64_t, int64_t>;  // offset, row, pixel; bytes
MapRef ToMap(const Ref& r) { return {std::get<0>(r), std::get<1>(r), std::get<2>(r)}; }
MapRef ToMap(const std::optional<Ref>& r) { return r ? ToMap(*r) : MapRef{}; }

using Size3 = std::array<int32_t, 3>;  // h, w, lines
Extent ToExtent(const Size3& e) {
  if (e[0] < 1 || e[1] < 1 || e[2] < 1) throw std::invalid_argument("extent: positive sizes expected");
  return {e[0], e[1], e[2]};
}

CodeRange ToRange(const Size3& r) {  // zero_point, qmin, qmax
  return {r[0], r[1], r[2], static_cast<float>(r[1] - r[0]), static_cast<float>(r[2] - r[0])};
}
Recode ToRecode(const std::array<int32_t, 5>& r) { return {r[0], r[1], r[2], r[3], r[4], 0}; }

ConvShape ToShape(const std::array<int32_t, 14>& s) {
  return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
}

std::vector<ConvBlock> ToBlocks(const Array<int64_t>& rows) {  // [blocks, 5]
  if (rows.ndim() != 2 || rows.shape(1) != 5) throw std::invalid_argument("blocks: [n, 5] expected");
  std::vector<ConvBlock> blocks;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    const int64_t* r = rows.data(i, 0);
    blocks.push_back({static_cast<int32_t>(r[0]), static_cast<int32_t>(r[1]), static_cast<int32_t>(r[2]),
                      static_cast<int32_t>(r[3]), r[4]});
  }
  return blocks;
}

WeightStorage ToStorage(const std::string& name) {
  if (name == "s3") return WeightStorage::kS3;
  if (name == "s4") return WeightStorage::kS4;
  if (name == "s8") return WeightStorage::kS8;
  throw std::invalid_argument("weight storage: s3, s4 or s8 expected, got " + name);
}

const KernelTable* Kernels(const std::string& isa) {
  const KernelTable* kernels = KernelsFor(isa);
  if (!kernels) throw std::invalid_argument("instruction set " + isa + " is not supported by this processor");
  return kernels;
}

const PeakLoops& Peaks(const std::string& isa) {
  Kernels(isa);
  return *PeakLoopsFor(isa);
}

const PeakLoop& Loop(const std::string& isa, const std::string& kind) {
  const PeakLoops& loops = Peaks(isa);
  if (kind == "f32") return loops.f32;
  if (kind == "u8") return loops.u8;
  if (kind == "u4") return loops.u4;
  throw std::invalid_argument("peaks: f32, u8 or u4 expected, got " + kind);
}

PoolKind ToPoolKind(const std::string& kind) {
  if (kind == "max_f32") return PoolKind::kMaxF32;
  if (kind == "max_u8") return PoolKind::kMaxU8;
  if (kind == "avg_f32") return PoolKind::kAvgF32;
  if (kind == "avg_u8") return PoolKind::kAvgU8;
  throw std::invalid_argument("pool kind: max_f32, max_u8, avg_f32 or avg_u8 expected, got " + kind);
}

using Lanes = std::array<int32_t, 5>;  // images, rows, columns, h, w
LaneGrid ToGrid(const Lanes& g) { return {g[0], g[1], g[2], g[3], g[4]}; }

// images: contiguous array whose dtype and size fit the program; outputs: one writable float32 [n, classes] per output.
// first, size: the images of the batch that this job takes.
Job ToJob(const Program& program, const py::array& images, const std::vector<Array<float>>& outputs, int64_t first, int64_t size) {
  if (images.ndim() < 1) throw std::invalid_argument("run: a batch of images expected");
  const int64_t count = images.shape(0);
  const char kind = program.float_images() ? 'f' : 'u';
  if (images.dtype().kind() != kind || images.itemsize() != (program.float_images() ? 4 : 1) ||
      !(images.flags() & py::array::c_style) || images.nbytes() != count * program.image_bytes())
    throw std::invalid_argument("run: images whose dtype, layout and size fit the program expected");
  if (outputs.size() != program.outputs().size()) throw std::invalid_argument("run: one array per output expected");
  if (first < 0 || size < 0 || first > count - size) throw std::invalid_argument("run: images of the batch expected");
  if (program.images() < 1) throw std::invalid_argument("run: a program with steps expected");
  Job job{&program, {}, first, size};
  for (size_t k = 0; k < outputs.size(); ++k) {
    const auto& out = outputs[k];
    if (out.ndim() != 2 || out.shape(0) != count || out.shape(1) != program.outputs()[k] || !out.writeable())
      throw std::invalid_argument("run: writable outputs [images, classes] expected");
    job.logits.push_back(const_cast<float*>(out.data()));
  }
  return job;
}

// program, outputs, first image, images
using JobTuple = std::tuple<const Program*, std::vector<Array<float>>, int64_t, int64_t>;

void CheckSameKernels(const Executor& executor, const Program& program) {
  if (&executor.kernels() != &program.kernels())
    throw std::invalid_argument("run: a program and an executor of the same instruction set expected");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of HCE Engine";
  m.def("supported_isas", &SupportedIsas, "Instruction sets with kernels that this machine can run, best first.");
  m.def("cpu_features", &CpuFeatures, "(feature, present) pairs.");
  m.def("channels_f32", [](const std::string& isa) { return Kernels(isa)->channels_f32; }, py::arg("isa"),
        "Largest block of output channels of the direct float32 kernel.");
  m.def("channels_u8", [](const std::string& isa) { return Kernels(isa)->channels_u8; }, py::arg("isa"),
        "Largest block of output channels of the direct kernel of codes, a multiple of 4.");
  m.def("channels_winograd", [](const std::string& isa) { return Kernels(isa)->channels_winograd; }, py::arg("isa"),
        "Largest block of output channels of the Winograd kernel.");
  m.def("winograd_scratch_lines", &WinogradScratchLines, py::arg("channels"),
        "Lines of scratch of a Winograd convolution of that many input channels.");
  m.attr("PEAK_BLOCK") = kPeakBlock;
  m.def("clock_seconds", &ClockSeconds, "What reading the clock costs, which every timed step contains once.");
  m.def("peak_instructions", [](const std::string& isa, const std::string& kind) { return Loop(isa, kind).instructions; },
        py::arg("isa"), py::arg("kind"), "The instructions of one step of a peak loop; kind: f32, u8 or u4.");
  m.def("measure_macs",
        [](const std::string& isa, const std::string& kind, int threads, double seconds, int repeats) {
          const PeakLoop& loop = Loop(isa, kind);
          py::gil_scoped_release release;
          return MeasureMacs(loop, {threads, seconds, repeats});
        },
        py::arg("isa"), py::arg("kind"), py::kw_only(), py::arg("threads"), py::arg("seconds"), py::arg("repeats"),
        "Multiply-accumulates per second of all threads together, one value per run.");
  m.def("measure_bandwidth",
        [](const std::string& isa, const std::string& pattern, int64_t bytes, int threads, double seconds, int repeats) {
          const PeakLoops& loops = Peaks(isa);
          if (pattern != "read" && pattern != "triad")
            throw std::invalid_argument("peaks: read or triad expected, got " + pattern);
          py::gil_scoped_release release;
          return (pattern == "read" ? MeasureRead : MeasureTriad)(loops, bytes, {threads, seconds, repeats});
        },
        py::arg("isa"), py::arg("pattern"), py::arg("bytes"), py::kw_only(), py::arg("threads"), py::arg("seconds"),
        py::arg("repeats"), "Bytes per second of all threads together, one value per run; bytes: of each array of each thread.");
  m.attr("TILE") = kTile;
  m.attr("DENSE_BLOCK") = kDenseBlock;
  m.attr("DEPTHWISE_COLUMNS") = kDepthwiseColumns;
  m.attr("AMX_SUM_LINES") = kAmxSumBytes / kLineBytes;
  m.def("winograd_u8_lines", &WinogradU8Lines, "Lines of scratch of a quantized layer by Winograd F(4, 3).", py::arg("units"));
  m.def("unpack_weights",
        [](const std::string& isa, const std::string& storage, const Array<uint8_t>& packed) {
          const WeightStorage kind = ToStorage(storage);
          const int64_t chunk = kind == WeightStorage::kS4 ? 32 : kind == WeightStorage::kS3 ? 24 : 64;
          if (packed.size() % chunk) throw std::invalid_argument("unpack: whole chunks expected");
          Array<int8_t> out(packed.size() / chunk * 64);
          const int64_t chunks = packed.size() / chunk;
          if (kind == WeightStorage::kS4)
            Kernels(isa)->unpack_s4(packed.data(), out.mutable_data(), chunks);
          else if (kind == WeightStorage::kS3)
            Kernels(isa)->unpack_s3(packed.data(), out.mutable_data(), chunks);
          else
            std::copy_n(reinterpret_cast<const int8_t*>(packed.data()), out.size(), out.mutable_data());
          return out;
        },
        py::arg("isa"), py::arg("storage"), py::arg("packed").noconvert());

  py::class_<Program>(m, "Program")
      .def(py::init([](const std::string& isa, int64_t arena_bytes, const Size3& image, bool float_images) {
             for (int32_t size : image)
               if (size < 1 || size > (1 << 20)) throw std::invalid_argument("program: image sizes of 1 to 2^20 expected");
             return std::make_unique<Program>(Kernels(isa), arena_bytes, image[0], image[1], image[2], float_images);
           }),
           py::arg("isa"), py::arg("arena_bytes"), py::arg("image"), py::arg("float_images"))
      .def_property_readonly("arena_bytes", &Program::arena_bytes)
      .def_property_readonly("weight_bytes", &Program::weight_bytes)
      .def_property_readonly("steps", &Program::steps)
      .def_property_readonly("outputs", &Program::outputs)
      .def("conv_u8",
           [](Program& p, const std::array<int32_t, 14>& shape, const Array<int64_t>& blocks, const std::string& storage,
              const Array<uint8_t>& packed, const Array<int32_t>& bias, const Array<float>& multiplier, int32_t pair_sums,
              bool fits_int32, const Ref& x, const std::optional<Ref>& y, const Size3& range,
              const std::optional<std::tuple<Ref, float, int32_t>>& residual,
              const std::optional<std::tuple<Ref, std::array<int32_t, 5>>>& recoded,
              const std::optional<Array<float>>& offset,
              const std::optional<std::tuple<std::array<int32_t, 4>, bool, Ref>>& amx,
              const std::optional<std::tuple<int32_t, int32_t, Array<int32_t>, std::array<int32_t, kFrequencies>, Ref>>& winograd) {
             ConvU8Spec s{ToShape(shape), amx || winograd ? std::vector<ConvBlock>{} : ToBlocks(blocks), ToStorage(storage), ToShared(packed), ToVector(bias),
                          ToVector(multiplier), pair_sums, fits_int32, ToMap(x), ToMap(y), ToRange(range), {}, {}, {}, {}, {}};
             if (residual)
               s.residual = ResidualU8{ToMap(std::get<0>(*residual)), std::get<1>(*residual), std::get<2>(*residual)};
             if (recoded) s.recoded = RecodedOutput{ToMap(std::get<0>(*recoded)), ToRecode(std::get<1>(*recoded))};
             if (offset) s.offset = ToVector(*offset);
             if (amx) {
               const auto& [cut, kernel_rows, sums] = *amx;
               s.amx = AmxCut{cut[0], cut[1], cut[2], cut[3], kernel_rows, ToMap(sums)};
             }
             if (winograd) {
               const auto& [qmax, entries, constants, pair_sums, scratch] = *winograd;
               s.winograd = WinogradU8Plan{qmax, entries, ToVector(constants), pair_sums, ToMap(scratch)};
             }
             AddConvU8(p, std::move(s));
           },
           py::kw_only(), py::arg("shape"), py::arg("blocks").noconvert(), py::arg("storage"), py::arg("packed").noconvert(),
           py::arg("bias").noconvert(), py::arg("multiplier").noconvert(), py::arg("pair_sums"), py::arg("fits_int32"), py::arg("x"),
           py::arg("y"), py::arg("range"), py::arg("residual"), py::arg("recoded"), py::arg("offset"), py::arg("amx"),
           py::arg("winograd"))
      .def("conv_f32",
           [](Program& p, const std::array<int32_t, 14>& shape, const Array<int64_t>& blocks, const Array<float>& weight,
              const Array<float>& bias, const Ref& x, const Ref& y, const std::optional<Ref>& residual, float low,
              float high, const std::optional<Ref>& scratch) {
             AddConvF32(p, {ToShape(shape), ToBlocks(blocks), ToShared(weight), ToVector(bias), ToMap(x), ToMap(y),
                            ToMap(residual), low, high, ToMap(scratch)});
           },
           py::kw_only(), py::arg("shape"), py::arg("blocks").noconvert(), py::arg("weight").noconvert(),
           py::arg("bias").noconvert(), py::arg("x"), py::arg("y"), py::arg("residual"), py::arg("low"),
           py::arg("high"), py::arg("scratch"))
      .def("dense_f32",
           [](Program& p, const Ref& x, const Ref& y, const std::array<int32_t, 2>& channels, const Array<float>& weight,
              const Array<float>& bias, float low, float high) {
             AddDenseF32(p, {ToMap(x), ToMap(y), channels[0], channels[1], ToShared(weight), ToVector(bias), low, high});
           },
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("channels"), py::arg("weight").noconvert(),
           py::arg("bias").noconvert(), py::arg("low"), py::arg("high"))
      .def("stage", &Program::AddStage, py::arg("images"))
      .def("load_codes", [](Program& p, const Ref& y, const Lanes& lanes) { AddLoadCodes(p, ToMap(y), ToGrid(lanes)); },
           py::arg("y"), py::arg("lanes"))
      .def("load_normalized",
           [](Program& p, const Ref& y, const Lanes& lanes, const Array<float>& scale, const Array<float>& offset) {
             AddLoadNormalized(p, ToMap(y), ToGrid(lanes), ToVector(scale), ToVector(offset));
           },
           py::arg("y"), py::arg("lanes"), py::arg("scale").noconvert(), py::arg("offset").noconvert())
      .def("load_quantized",
           [](Program& p, const Ref& y, const Lanes& lanes, float low, float multiplier) {
             AddLoadQuantized(p, ToMap(y), ToGrid(lanes), low, multiplier);
           },
           py::arg("y"), py::arg("lanes"), py::arg("low"), py::arg("multiplier"))
      .def("halo",
           [](Program& p, const Ref& y, const Lanes& lanes, const std::array<int32_t, 2>& size,
              const std::array<int32_t, 4>& width, const Array<uint32_t>& pattern) {
             AddHalo(p, {ToMap(y), ToGrid(lanes), size[0], size[1], width[0], width[1], width[2], width[3], ToVector(pattern)});
           },
           py::arg("y"), py::arg("lanes"), py::arg("size"), py::arg("width"), py::arg("pattern").noconvert())
      .def("regroup",
           [](Program& p, const Ref& x, const Ref& y, const Lanes& from, const Lanes& to, const Size3& extent) {
             AddRegroup(p, {ToMap(x), ToMap(y), ToGrid(from), ToGrid(to), extent[0], extent[1], extent[2]});
           },
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("lanes"), py::arg("to"), py::arg("extent"))
      .def("averages",
           [](Program& p, const Ref& x, const Ref& y, const Lanes& lanes, const Size3& extent, bool codes, int32_t zero_point_in,
              float multiplier, const Size3& range) {
             AddAverages(p, {ToMap(x), ToMap(y), ToGrid(lanes), extent[0], extent[1], extent[2], codes, zero_point_in, multiplier,
                             ToRange(range)});
           },
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("lanes"), py::arg("extent"), py::arg("codes"),
           py::arg("zero_point_in"), py::arg("multiplier"), py::arg("range"))
      .def("pool",
           [](Program& p, const std::string& kind, const Ref& x, const Ref& y, const std::array<int32_t, 2>& in,
              const Size3& out, const std::array<int32_t, 6>& window, bool halo, bool count_include_pad,
              int32_t zero_point_in, float multiplier, const Size3& range) {
             AddPool(p, ToPoolKind(kind),
                     {{}, {}, in[0], in[1], ToExtent(out), window[0], window[1], window[2], window[3], window[4],
                      window[5], count_include_pad, zero_point_in, multiplier, ToRange(range)},
                     ToMap(x), ToMap(y), halo);
           },
           py::kw_only(), py::arg("kind"), py::arg("x"), py::arg("y"), py::arg("input"), py::arg("output"),
           py::arg("window"), py::arg("halo"), py::arg("count_include_pad"), py::arg("zero_point_in"), py::arg("multiplier"),
           py::arg("range"))
      .def("add_f32",
           [](Program& p, const Ref& a, const std::optional<Ref>& b, const Ref& y, const Size3& extent, float scale,
              float low, float high) {
             AddAddF32(p, {{}, {}, {}, ToExtent(extent), scale, low, high}, ToMap(a), ToMap(b), ToMap(y));
           },
           py::kw_only(), py::arg("a"), py::arg("b"), py::arg("y"), py::arg("extent"), py::arg("scale"), py::arg("low"),
           py::arg("high"))
      .def("add_u8",
           [](Program& p, const Ref& a, const Ref& b, const Ref& y, const Size3& extent,
              const std::array<int32_t, 2>& zero_points, const std::array<float, 2>& multipliers, const Size3& range) {
             AddAddU8(p, {{}, {}, {}, ToExtent(extent), zero_points[0], zero_points[1], multipliers[0], multipliers[1],
                          ToRange(range)},
                      ToMap(a), ToMap(b), ToMap(y));
           },
           py::kw_only(), py::arg("a"), py::arg("b"), py::arg("y"), py::arg("extent"), py::arg("zero_points"),
           py::arg("multipliers"), py::arg("range"))
      .def("recode",
           [](Program& p, const Ref& x, const Ref& y, const Size3& extent, const std::array<int32_t, 5>& recode) {
             AddRecode(p, {{}, {}, ToExtent(extent), ToRecode(recode)}, ToMap(x), ToMap(y));
           },
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("extent"), py::arg("recode"))
      .def("copy",
           [](Program& p, const Ref& x, const Ref& y, const std::array<int32_t, 2>& in, const Size3& out,
              const std::array<int32_t, 2>& channels, const std::array<int32_t, 4>& pixels, bool codes,
              std::optional<uint32_t> fill) {
             const Extent extent = ToExtent(out);
             AddCopy(p, {{}, {}, extent.h, extent.w, channels[0], channels[1], pixels[0], pixels[1], pixels[2],
                         pixels[3], codes, extent.lines, fill.has_value(), fill.value_or(0)},
                     ToMap(x), ToMap(y), in[0], in[1]);
           },
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("input"), py::arg("output"), py::arg("channels"),
           py::arg("pixels"), py::arg("codes"), py::arg("fill"))
      .def("flatten",
           [](Program& p, const Ref& x, const Ref& y, const Size3& input, bool codes) {
             AddFlatten(p, ToMap(x), ToMap(y), input[0], input[1], input[2], codes);
           },
           py::kw_only(), py::arg("x"), py::arg("y"), py::arg("input"), py::arg("codes"))
      .def("store_logits",
           [](Program& p, const Ref& x, int classes) {
             if (classes < 1) throw std::invalid_argument("store: at least one class expected");
             AddStoreLogits(p, ToMap(x), p.AddOutput(classes));
           },
           py::arg("x"), py::arg("classes"));

  py::class_<Executor>(m, "Executor")
      .def(py::init([](const std::string& isa, int threads, int64_t shared_work) {
             if (threads < 1 || threads > 1024) throw std::invalid_argument("executor: 1 to 1024 threads expected");
             return std::make_unique<Executor>(Kernels(isa), threads, shared_work);
           }),
           py::arg("isa"), py::arg("threads"), py::arg("shared_work") = 0)
      .def_property_readonly("threads", &Executor::threads)
      .def("run",
           [](Executor& e, const std::vector<JobTuple>& jobs, const py::array& images, bool poison) {
             std::vector<Job> list;
             for (const auto& [program, outputs, first, count] : jobs) {
               CheckSameKernels(e, *program);
               list.push_back(ToJob(*program, images, outputs, first, count));
             }
             if (list.empty()) return;
             const uint8_t* data = static_cast<const uint8_t*>(images.data());
             py::gil_scoped_release release;
             e.Run(list, data, poison);
           },
           py::arg("jobs"), py::arg("images"), py::arg("poison") = false)
      .def("profile",
           [](Executor& e, const JobTuple& job, const py::array& images) {
             const auto& [program, outputs, first, count] = job;
             CheckSameKernels(e, *program);
             const Job checked = ToJob(*program, images, outputs, first, count);
             const uint8_t* data = static_cast<const uint8_t*>(images.data());
             py::gil_scoped_release release;
             return e.Profile(checked, data);
           },
           py::arg("job"), py::arg("images"));
}
