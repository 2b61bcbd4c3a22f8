// What the builders of steps (steps.h) share: conditions that throw, and a step made of a function.
#pragma once
#include <memory>
#include <stdexcept>
#include <utility>

#include "program.h"

namespace hce {

inline View At(const Tile& tile, const MapRef& map) {
  if (!map.present()) return {nullptr, 0, 0};
  return {tile.arena + map.offset, map.row, map.pixel};
}
inline ConstView ReadAt(const Tile& tile, const MapRef& map) {
  const View v = At(tile, map);
  return {v.data, v.row, v.pixel};
}

inline void Require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <class F>
class LambdaStep : public Step {
 public:
  explicit LambdaStep(F run) : run_(std::move(run)) {}
  void Run(Tile& tile) const override { run_(tile); }

 private:
  F run_;
};

template <class F>
void AddStep(Program& program, F run) {
  program.Add(std::make_unique<LambdaStep<F>>(std::move(run)));
}

}  // namespace hce
