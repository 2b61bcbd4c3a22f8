#include "program.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <utility>

namespace hce {

Program::Program(const KernelTable* kernels, int64_t arena_bytes, int64_t image_h, int64_t image_w, int64_t image_c,
                 bool float_images)
    : kernels_(kernels), arena_bytes_(arena_bytes), float_images_(float_images) {
  if (arena_bytes < 0 || arena_bytes % kLineBytes) throw std::invalid_argument("program: arena of whole lines expected");
  image_ = {nullptr, image_h * image_w * image_c * (float_images ? 4 : 1), 0, static_cast<int32_t>(image_h),
            static_cast<int32_t>(image_w), static_cast<int32_t>(image_c)};
}

void Program::Check(const char* what, const MapRef& map, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                    int64_t lines) const {
  // Products of 64-bit numbers that nobody has bounded yet: twice the width cannot overflow.
  using Wide = __int128;
  const Wide first = map.offset + Wide{row0} * map.row + Wide{column0} * map.pixel;
  const Wide last = map.offset + Wide{row1 - 1} * map.row + Wide{column1 - 1} * map.pixel + Wide{lines} * kLineBytes;
  if (map.offset % kLineBytes || map.row % kLineBytes || map.pixel % kLineBytes || map.row < 0 || map.pixel < 0 ||
      row0 >= row1 || column0 >= column1 || lines < 1 || first < 0 || last > arena_bytes_)
    throw std::invalid_argument(std::string(what) + ": a map that lies outside the arena of " +
                                std::to_string(arena_bytes_) + " bytes: offset " + std::to_string(map.offset) + ", row " +
                                std::to_string(map.row) + ", pixel " + std::to_string(map.pixel));
}

int Program::AddOutput(int classes) {
  outputs_.push_back(classes);
  return static_cast<int>(outputs_.size()) - 1;
}

void Program::AddStage(int images) {
  if (images < 1 || images > kTile || (!stages_.empty() && images % stages_.back().images))
    throw std::invalid_argument("program: stages of 1 to 16 images, each a multiple of the last, expected");
  stages_.push_back({images, steps_.size(), steps_.size()});
}

void Program::Add(std::unique_ptr<Step> step) {
  if (stages_.empty()) throw std::invalid_argument("program: a stage before its first step expected");
  steps_.push_back(std::move(step));
  stages_.back().end = steps_.size();
}

void Program::RunStage(size_t stage, Tile& tile, const uint8_t* images, int first, int end,
                       int64_t* nanoseconds, Barrier* barrier) const {
  const Stage& s = stages_[stage];
  for (; first < end; first += s.images) {
    const int last = first + s.images < end ? first + s.images : end;
    if (stage > 0) RunStage(stage - 1, tile, images, first, last, nanoseconds, barrier);
    tile.images.data = images + first * image_bytes();
    tile.images.count = last - first;
    tile.offset = first;
    for (size_t i = s.begin; i < s.end; ++i) {
      if (barrier) {
        if (tile.part.index == 0 || steps_[i]->Splits()) steps_[i]->Run(tile);
        barrier->Wait();
        continue;
      }
      if (!nanoseconds) {
        steps_[i]->Run(tile);
        continue;
      }
      const auto start = std::chrono::steady_clock::now();
      steps_[i]->Run(tile);
      nanoseconds[i] +=
          std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
    }
  }
}

void Program::Run(Tile& tile, const uint8_t* images, int count, int64_t* nanoseconds, Barrier* barrier) const {
  if (!stages_.empty()) RunStage(stages_.size() - 1, tile, images, 0, count, nanoseconds, barrier);
}

Executor::Executor(const KernelTable* kernels, int threads, int64_t shared_work)
    : kernels_(kernels), shared_work_(shared_work), pool_(threads), arenas_(threads) {}

namespace {

// x - x is 0 for finite x and NaN otherwise; a sum keeps the NaN and needs no branch. Images may lie at any address.
bool HoldsNonFinite(const uint8_t* image, int64_t bytes) {
  constexpr int kSums = 16;  // independent, so that additions do not wait for each other
  float sums[kSums] = {}, x[kSums];
  int64_t k = 0;
  for (; k + static_cast<int64_t>(sizeof x) <= bytes; k += sizeof x) {
    std::memcpy(x, image + k, sizeof x);
    for (int i = 0; i < kSums; ++i) sums[i] += x[i] - x[i];
  }
  for (; k < bytes; k += sizeof(float)) {
    std::memcpy(x, image + k, sizeof(float));
    sums[0] += x[0] - x[0];
  }
  float sum = 0.0f;
  for (float s : sums) sum += s;
  return sum != 0.0f;
}

}  // namespace

void Executor::RunTile(const Job& job, const uint8_t* images, int64_t tile_index, const Place& place, bool poison,
                       int64_t* nanoseconds) {
  const Program& program = *job.program;
  uint8_t* own = arenas_[place.own].data();
  if (poison) std::memset(own, 0xff, arenas_[place.own].bytes());
  if (poison && place.barrier) place.barrier->Wait();  // nobody writes maps into an arena that is still being poisoned
  const int64_t first = tile_index * program.images(), left = job.count - first;
  const int count = static_cast<int>(left < program.images() ? left : program.images());
  Tile tile;
  tile.kernels = kernels_;
  tile.arena = arenas_[place.maps].data();
  tile.scratch = own;
  tile.part = place.part;
  tile.weights = reinterpret_cast<int8_t*>(own + program.arena_bytes());
  tile.images = program.image();
  tile.first = job.first + first;
  tile.logits = job.logits.data();
  images += tile.first * program.image_bytes();
  for (int n = 0; n < kTile; ++n)
    tile.non_finite[n] = program.float_images() && n < count &&
                         HoldsNonFinite(images + n * program.image_bytes(), program.image_bytes());
  program.Run(tile, images, count, nanoseconds, place.barrier);
}

void Executor::Reserve(AlignedBuffer& arena, const Program& program) {
  const int64_t bytes = program.arena_bytes() + program.weight_bytes();
  if (static_cast<int64_t>(arena.bytes()) < bytes) arena = AlignedBuffer(bytes);
}

namespace {

int64_t Tiles(const Job& job) { return (job.count + job.program->images() - 1) / job.program->images(); }

// The job of a task, and which of its tiles that is.
std::pair<const Job*, int64_t> Find(const std::vector<Job>& jobs, int64_t task) {
  const Job* job = jobs.data();
  for (; task >= Tiles(*job); ++job) task -= Tiles(*job);
  return {job, task};
}

}  // namespace

void Executor::Run(const std::vector<Job>& jobs, const uint8_t* images, bool poison) {
  pool_.CheckProcess();
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t tasks = 0;
  for (const Job& job : jobs) {
    for (AlignedBuffer& arena : arenas_) Reserve(arena, *job.program);
    tasks += Tiles(job);
  }
  bool worth = tasks > 0;
  for (const Job& job : jobs) worth = worth && job.program->work() >= shared_work_;
  const int team = worth && tasks * 2 <= threads() ? threads() / static_cast<int>(tasks) : 1;
  if (team > 1) {
    SharingChoice& choice = sharing_[jobs[0].program];
    const bool share = shared_work_ == 0 || choice.Share();
    const auto start = std::chrono::steady_clock::now();
    share ? RunShared(jobs, images, tasks, team, poison) : RunAlone(jobs, images, tasks, poison);
    choice.Took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return;
  }
  RunAlone(jobs, images, tasks, poison);
}

void Executor::RunAlone(const std::vector<Job>& jobs, const uint8_t* images, int64_t tasks, bool poison) {
  pool_.Run(tasks, [&](int64_t task, int worker) {
    const auto [job, tile] = Find(jobs, task);
    RunTile(*job, images, tile, {worker, worker, {}, nullptr}, poison, nullptr);
  });
}

void Executor::RunShared(const std::vector<Job>& jobs, const uint8_t* images, int64_t tasks, int team, bool poison) {
  // As many parts as threads at most, so each thread takes one, and all parts of a tile run at the same time.
  std::deque<Barrier> barriers;
  for (int64_t task = 0; task < tasks; ++task) barriers.emplace_back(team);
  pool_.Run(tasks * team, [&](int64_t number, int) {
    const int own = static_cast<int>(number), part = own % team;
    const auto [job, tile] = Find(jobs, number / team);
    RunTile(*job, images, tile, {own, own - part, {part, team}, &barriers[number / team]}, poison, nullptr);
  });
}

bool SharingChoice::Share() {
  const uint64_t run = runs_++;
  const bool faster = seconds_[1] <= seconds_[0];
  const bool trial = run < 2 * kTrials || run % kPeriod < kTrials;
  share_ = run < 2 * kTrials ? run < kTrials : faster != trial;
  counts_ = !trial || run % kTrials != 0;
  return share_;
}

void SharingChoice::Took(double seconds) {
  if (!counts_) return;
  double& mean = seconds_[share_];
  mean = mean == 0.0 ? seconds : 0.75 * mean + 0.25 * seconds;
}

std::vector<int64_t> Executor::Profile(const Job& job, const uint8_t* images) {
  pool_.CheckProcess();
  std::vector<int64_t> nanoseconds(job.program->steps(), 0);
  std::lock_guard<std::mutex> lock(mutex_);
  Reserve(arenas_[0], *job.program);
  for (int64_t tile = 0; tile < Tiles(job); ++tile) RunTile(job, images, tile, {0, 0, {}, nullptr}, false, nanoseconds.data());
  return nanoseconds;
}

}  // namespace hce
