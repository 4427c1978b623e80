// Outputs divided among the threads of XLA.

#ifndef BANDWIDTH_INFERENCE_NATIVE_THREADS_H_
#define BANDWIDTH_INFERENCE_NATIVE_THREADS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace bandwidth {

// Outputs are handed out in pieces. The caller takes part, so that the work is
// done even if no thread of the pool is ever free; one that comes when nothing
// is left does not touch the task, which is gone by then.
class Pieces {
 public:
  Pieces(int64_t outputs, int64_t piece, const Task& task)
      : outputs_(outputs), piece_(piece), task_(task) {}

  void Take() {
    for (;;) {
      const int64_t begin = next_.fetch_add(piece_);
      if (begin >= outputs_) return;
      const int64_t end = std::min(begin + piece_, outputs_);
      task_.run(task_.self, begin, end);
      if (done_.fetch_add(end - begin) + (end - begin) == outputs_) {
        std::lock_guard<std::mutex> lock(mutex_);
        all_done_.notify_all();
      }
    }
  }

  void Wait() {
    // Others are at their last piece: to sleep and be woken would take longer.
    for (int i = 0; i < 4096; ++i) {
      if (done_.load(std::memory_order_acquire) == outputs_) return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_.load() == outputs_; });
  }

 private:
  const int64_t outputs_;
  const int64_t piece_;
  const Task task_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// Below this work a second thread costs more than it saves.
constexpr int64_t kWorkOfThread = 1 << 18;
constexpr int64_t kWorkOfPiece = 1 << 17;

inline void Divide(void* given, int64_t outputs, int64_t unit, int64_t work,
                   const Task& task) {
  auto& pool = *static_cast<xla::ffi::ThreadPool*>(given);
  const int64_t threads = std::min<int64_t>(
      std::max<int64_t>(pool.num_threads(), 1), work / kWorkOfThread);
  if (threads <= 1) return task.run(task.self, 0, outputs);
  const int64_t pieces = std::max<int64_t>(4 * threads, work / kWorkOfPiece);
  const int64_t piece = std::max<int64_t>(outputs / pieces / unit, 1) * unit;
  auto shared = std::make_shared<Pieces>(outputs, piece, task);
  for (int64_t i = 1; i < threads; ++i) {
    pool.Schedule([shared] { shared->Take(); });
  }
  shared->Take();
  shared->Wait();
}

}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_THREADS_H_
