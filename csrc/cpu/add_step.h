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

template <class F, bool kSplits>
class LambdaStep : public Step {
 public:
  explicit LambdaStep(F run) : run_(std::move(run)) {}
  void Run(Tile& tile) const override { run_(tile); }
  bool Splits() const override { return kSplits; }

 private:
  F run_;
};

// A step that one thread runs whole.
template <class F>
void AddStep(Program& program, F run) {
  program.Add(std::make_unique<LambdaStep<F, false>>(std::move(run)));
}

// A step whose `run` does tile.part of the work.
template <class F>
void AddSplitStep(Program& program, F run) {
  program.Add(std::make_unique<LambdaStep<F, true>>(std::move(run)));
}

}  // namespace hce
