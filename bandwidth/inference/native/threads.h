// Outputs divided among the threads of XLA.

#ifndef BANDWIDTH_INFERENCE_NATIVE_THREADS_H_
#define BANDWIDTH_INFERENCE_NATIVE_THREADS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace bandwidth {

// Outputs are handed out in pieces. The caller takes part, so that the work is
// done even if no thread of the pool is ever free.
class Pieces {
 public:
  Pieces(int64_t outputs, int64_t piece, std::function<void(int64_t, int64_t)> f)
      : outputs_(outputs), piece_(piece), work_(std::move(f)) {}

  void Take() {
    for (;;) {
      const int64_t begin = next_.fetch_add(piece_);
      if (begin >= outputs_) return;
      const int64_t end = std::min(begin + piece_, outputs_);
      work_(begin, end);
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
  const std::function<void(int64_t, int64_t)> work_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// Below these bytes of a matrix a second thread costs more than it saves.
constexpr int64_t kBytesOfThread = 1 << 16;
constexpr int64_t kBytesOfPiece = 1 << 16;

inline void Divide(xla::ffi::ThreadPool& pool, int64_t outputs, int64_t bytes,
            const std::function<void(int64_t, int64_t)>& work) {
  const int64_t threads = std::min<int64_t>(
      std::max<int64_t>(pool.num_threads(), 1), bytes / kBytesOfThread);
  if (threads <= 1) return work(0, outputs);
  const int64_t pieces =
      std::max<int64_t>(4 * threads, bytes / kBytesOfPiece);
  const int64_t piece = std::max<int64_t>(outputs / pieces, 1);
  auto shared = std::make_shared<Pieces>(outputs, piece, work);
  for (int64_t i = 1; i < threads; ++i) {
    pool.Schedule([shared] { shared->Take(); });
  }
  shared->Take();
  shared->Wait();
}

}  // namespace bandwidth

#endif  // BANDWIDTH_INFERENCE_NATIVE_THREADS_H_
