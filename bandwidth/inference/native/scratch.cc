// Memory of a thread.

#include <memory>

#include "kernels.h"

namespace bandwidth {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kKept = 1 << 24;

struct Block {
  std::unique_ptr<uint8_t[]> memory;
  int64_t bytes = 0;
};

Block& Own() {
  thread_local Block block;
  return block;
}

}  // namespace

Scratch::Scratch(int64_t bytes) {
  Block& own = Own();
  if (own.bytes < bytes) {
    own.memory.reset();
    own.bytes = 0;
    own.memory.reset(new uint8_t[bytes + kLine]);
    own.bytes = bytes;
  }
  const auto start = reinterpret_cast<uintptr_t>(own.memory.get());
  next_ = reinterpret_cast<uint8_t*>((start + kLine - 1) / kLine * kLine);
}

Scratch::~Scratch() {
  Block& own = Own();
  if (own.bytes > kKept) {
    own.memory.reset();
    own.bytes = 0;
  }
}

}  // namespace bandwidth
