// What the bindings of all kernels share: pointers and maps as Python passes them, launches, errors.
//
// A family of kernels in a file of its own binds itself by a function `void Bind...(py::module_&)`, declared below and
// called in bindings.cpp.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernel_table.h"

namespace hce::cuda {

namespace py = pybind11;

inline PyObject* cuda_error = nullptr;  // class CudaError(RuntimeError): name, code

#if !defined(HCE_HOST)
// Raises CudaError unless `status` is success. An error that concerns one call only is taken from the runtime's memory,
// so that it is not reported again by the next one; one that leaves the device unusable comes back by itself.
inline void Require(const char* what, Status status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const std::string text = std::string(what) + ": " + cudaGetErrorName(status) + " (" +
                           std::to_string(static_cast<int>(status)) + "): " + cudaGetErrorString(status);
  const py::object error = py::reinterpret_steal<py::object>(PyObject_CallFunction(cuda_error, "s", text.c_str()));
  error.attr("name") = cudaGetErrorName(status);
  error.attr("code") = static_cast<int>(status);
  PyErr_SetObject(cuda_error, error.ptr());
  throw py::error_already_set();
}

// Makes `device` the current one of this thread, and afterwards the one that was.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    Require("cudaGetDevice", cudaGetDevice(&before_));
    if (before_ != device) Require("cudaSetDevice", cudaSetDevice(device));
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};
#else
inline void Require(const char* what, Status status) {
  if (status != kSuccess) throw std::runtime_error(std::string(what) + ": the launch failed");
}
struct OnDevice {
  explicit OnDevice(int) {}
};
#endif

template <class Args>
void Run(const char* name, int device, uintptr_t stream, const Args& args, Status (*launch)(const Args&, Stream)) {
  if (const char* wrong = Check(args)) throw std::invalid_argument(std::string(name) + ": " + wrong);
  OnDevice on(device);
  Status status;
  {
    py::gil_scoped_release release;
    status = launch(args, reinterpret_cast<Stream>(stream));
  }
  Require(name, status);
}

// A map: address of pixel (0, 0); strides of tile, row and pixel in floats.
using Ref = std::tuple<uintptr_t, int64_t, int32_t, int32_t>;
template <class T>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
inline ConstMap In(const Ref& r) { return {At<const float>(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r)}; }
inline ConstMap In(const std::optional<Ref>& r) { return r ? In(*r) : ConstMap{}; }
inline Map Out(const Ref& r) { return {At<float>(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r)}; }
inline ConvConfig Config(const std::array<int32_t, 6>& c) { return {c[0], c[1], c[2], c[3], c[4], c[5]}; }

using Limits = std::array<float, 2>;
using FloatArray = py::array_t<float, py::array::c_style>;

void BindNhwc(py::module_& m);
void BindSplit(py::module_& m);

}  // namespace hce::cuda
