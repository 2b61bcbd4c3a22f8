// A program: the steps that take one tile of up to 16 images through a whole network, depth-first, in one arena.
//
// Steps come in stages. A stage takes some of the tile's images at a time, a group, through its steps; the next stage takes
// several groups at once, joined by a step of the former. So large maps can stay in the cache while many images share large
// weights. The plan (hce_engine/plan) decides everything; a program only holds packed weights and addresses and checks that no
// step can touch a byte outside its arena. Programs are immutable once built and shared by all worker threads; what a
// thread writes is its own arena.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "aligned_buffer.h"
#include "kernel_table.h"
#include "thread_pool.h"

namespace hce {

// Where a map lives: byte offset of pixel (0, 0) in the arena, strides in bytes; offset < 0 means absent.
struct MapRef {
  int64_t offset = -1, row = 0, pixel = 0;
  bool present() const { return offset >= 0; }
};

enum class WeightStorage { kS3, kS4, kS8 };

// The share of one thread in a step that several threads run together, each on its part of the step's outputs.
struct Part {
  int index = 0, count = 1;
  // This part of `size` things, as even as may be.
  int64_t Begin(int64_t size) const { return size * index / count; }
  int64_t End(int64_t size) const { return size * (index + 1) / count; }
};

struct Tile {  // what a step sees while it runs
  const KernelTable* kernels;
  uint8_t* arena;  // of the maps; threads that share a tile share it
  uint8_t* scratch;  // an arena of this thread alone, for maps that hold no more than one step's workspace
  Part part;
  int8_t* weights;  // room for the unpacked weights of the largest quantized layer
  ImageTile images;            // of the group
  int32_t offset;              // index of the group's first image in the tile
  int64_t first;               // index of the tile's first image in the batch
  float* const* logits;        // of the whole batch, one per member output
  bool non_finite[kTile];      // images of the tile that hold NaN or Inf: their logits become NaN
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void Run(Tile& tile) const = 0;
  // Whether Run does tile.part of the work, for parts that run at the same time. If not, one thread runs it whole.
  virtual bool Splits() const { return false; }
};

class Program {
 public:
  // kernels: the instruction set that the blocks of its convolutions were cut for.
  Program(const KernelTable* kernels, int64_t arena_bytes, int64_t image_h, int64_t image_w, int64_t image_c, bool float_images);

  // The steps added from here on take `images` images at a time, a multiple of what the last stage takes.
  void AddStage(int images);
  void Add(std::unique_ptr<Step> step);
  // Throws std::invalid_argument unless pixels [row0, row1) x [column0, column1) of `lines` lines lie in the arena.
  void Check(const char* what, const MapRef& map, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
             int64_t lines) const;
  void NeedWeights(int64_t bytes) { weight_bytes_ = bytes > weight_bytes_ ? bytes : weight_bytes_; }
  // Says that a step takes so many multiply-accumulates of whole registers, for the choice whether threads share a tile.
  void AddWork(int64_t products) { work_ += products; }
  // Registers a member output of `classes` logits; returns its index.
  int AddOutput(int classes);

  int stage_images() const { return stages_.empty() ? 0 : stages_.back().images; }
  int images() const { return stage_images(); }  // of a tile
  int64_t work() const { return work_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t weight_bytes() const { return weight_bytes_; }  // and readable lines behind the last map, for tiles
  int64_t image_bytes() const { return image_.image_bytes; }
  const std::vector<int>& outputs() const { return outputs_; }
  size_t steps() const { return steps_.size(); }
  const ImageTile& image() const { return image_; }
  const KernelTable& kernels() const { return *kernels_; }
  bool float_images() const { return float_images_; }

  // Runs one tile of `count` images, the first at `images`. nanoseconds, if given, has one entry per step and is added to.
  // barrier: of the threads that run this tile together, each with its part, or none.
  void Run(Tile& tile, const uint8_t* images, int count, int64_t* nanoseconds, Barrier* barrier) const;

 private:
  struct Stage {
    int images;
    size_t begin, end;  // steps
  };

  // What the first stage.. `stage` do with the images [first, end) of the tile.
  void RunStage(size_t stage, Tile& tile, const uint8_t* images, int first, int end, int64_t* nanoseconds, Barrier* barrier) const;

  const KernelTable* kernels_;
  std::vector<Stage> stages_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<int> outputs_;
  int64_t arena_bytes_, weight_bytes_ = kTile * kLineBytes, work_ = 0;
  ImageTile image_;
  bool float_images_;
};

// Images [first, first + count) of a batch for one program, in tiles of program->images(), and where its logits go: logits[k]
// is [images of the batch][outputs()[k]] float32, dense.
struct Job {
  const Program* program;
  std::vector<float*> logits;
  int64_t first, count;
};

// Whether threads that share a tile are faster than one that has it alone, learned from the runs themselves, since it depends on
// how near the cores are to each other at the time. The bytes of the results are the same either way.
class SharingChoice {
 public:
  // Of the run that comes; both ways in turns at first, then mostly the faster one, and the other for a few runs now and then.
  bool Share();
  void Took(double seconds);

 private:
  static constexpr int kTrials = 4;    // runs of the slower way in a row, of which the first wakes threads and does not count
  static constexpr int kPeriod = 128;  // runs
  double seconds_[2] = {0.0, 0.0};     // alone, shared; of recent runs
  uint64_t runs_ = 0;
  bool share_ = false, counts_ = false;
};

// Threads and the memory they work in.
class Executor {
 public:
  // shared_work: threads may share a tile of a program whose work() is at least this, and do where that is faster; 0: always.
  Executor(const KernelTable* kernels, int threads, int64_t shared_work);

  // All tiles of all jobs as one list of tasks; where there are fewer tiles than threads, several threads share a tile that is
  // worth it. `images`: of the whole batch. `poison` fills every arena with NaN bytes first
  // (tests).
  void Run(const std::vector<Job>& jobs, const uint8_t* images, bool poison);
  // One job on the calling thread; returns nanoseconds per step.
  std::vector<int64_t> Profile(const Job& job, const uint8_t* images);

  int threads() const { return pool_.threads(); }
  const KernelTable& kernels() const { return *kernels_; }

 private:
  // Where a part of a tile runs: the arena of its own, for scratch memory, and the one in which the tile's maps lie.
  struct Place {
    int own, maps;
    Part part;
    Barrier* barrier;
  };
  void RunTile(const Job& job, const uint8_t* images, int64_t tile, const Place& place, bool poison, int64_t* nanoseconds);

  void Reserve(AlignedBuffer& arena, const Program& program);
  // Every thread takes a whole tile after the other.
  void RunAlone(const std::vector<Job>& jobs, const uint8_t* images, int64_t tasks, bool poison);
  // `team` threads on each tile, all tiles at the same time.
  void RunShared(const std::vector<Job>& jobs, const uint8_t* images, int64_t tasks, int team, bool poison);

  const KernelTable* kernels_;
  const int64_t shared_work_;
  std::mutex mutex_;  // one run at a time: the arenas are shared
  ThreadPool pool_;
  std::vector<AlignedBuffer> arenas_;  // one per thread, grown before a run
  std::map<const Program*, SharingChoice> sharing_;  // by a run's first program
};

}  // namespace hce
