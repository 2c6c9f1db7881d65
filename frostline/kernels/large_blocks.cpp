// Large tensors on the CPU, out of one stretch of addresses: best fit, and neighbours are joined when they are freed.
//
// glibc's posix_memalign asks for more than it hands out and frees the ends, which small blocks then take: a freed tensor is no
// longer large enough for the next one of its size. Here it is, so freed memory is used again and the peak is what lives at once.
// Blocks below the smallest size, and what no longer fits, are left to PyTorch's own allocator.

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace {

constexpr size_t kSmallest = 1 << 16;
constexpr size_t kStep = 64;  // a cache line, and what vector instructions want

class Stretch {
 public:
  bool reserve(size_t size) {
    void* found = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return false;
    madvise(found, size, MADV_HUGEPAGE);  // where it is not known, pages are small
    begin_ = static_cast<char*>(found);
    size_ = size;
    return true;
  }

  bool holds(const void* block) const {
    return block >= begin_ && block < begin_ + size_;
  }

  void* take(size_t wanted) {
    // One step more than is needed: blocks of 2^n bytes would all begin at the same place of a page, which slows caches down.
    const size_t size = (wanted + kStep - 1) / kStep * kStep + kStep;
    std::lock_guard<std::mutex> lock(mutex_);
    char* block = nullptr;
    size_t found = 0;
    if (auto fit = by_size_.lower_bound({size, nullptr}); fit != by_size_.end()) {
      std::tie(found, block) = *fit;
      remove(block, found);
    } else {
      if (!by_place_.empty() && by_place_.rbegin()->first + by_place_.rbegin()->second == begin_ + top_) {
        std::tie(block, found) = *by_place_.rbegin();  // the last free block grows
      } else {
        block = begin_ + top_;
      }
      if (size_t(block - begin_) + size > size_) return nullptr;
      if (found) remove(block, found);
      top_ = size_t(block - begin_) + size;
      found = size;
    }
    if (found > size) add(block + size, found - size);
    taken_.emplace(block, size);
    live_ += size;
    if (live_ > peak_) peak_ = live_;
    return block;
  }

  void give(void* given) {
    std::lock_guard<std::mutex> lock(mutex_);
    char* block = static_cast<char*>(given);
    const auto known = taken_.find(block);
    size_t size = known->second;
    taken_.erase(known);
    live_ -= size;
    auto next = by_place_.lower_bound(block);
    if (next != by_place_.end() && next->first == block + size) {
      const auto [place, more] = *next;
      remove(place, more);
      size += more;
      next = by_place_.lower_bound(block);
    }
    if (next != by_place_.begin()) {
      const auto [place, before] = *std::prev(next);
      if (place + before == block) {
        remove(place, before);
        block = place;
        size += before;
      }
    }
    add(block, size);
  }

  size_t free_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return top_ - live_;
  }

  size_t live_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    peak_ = live_;
    return live_;
  }

  size_t peak_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return peak_;
  }

 private:
  void add(char* place, size_t size) {
    by_place_.emplace(place, size);
    by_size_.emplace(size, place);
  }

  void remove(char* place, size_t size) {
    by_place_.erase(place);
    by_size_.erase({size, place});
  }

  std::mutex mutex_;
  char* begin_ = nullptr;
  size_t size_ = 0, top_ = 0, live_ = 0, peak_ = 0;
  std::map<char*, size_t> by_place_;
  std::set<std::pair<size_t, char*>> by_size_;
  std::unordered_map<char*, size_t> taken_;
};

Stretch* stretch = nullptr;  // never deleted: tensors may outlive everything

void give_back(void* block) {
  if (!block) return;
  c10::profiledCPUMemoryReporter().Delete(block);
  if (stretch->holds(block)) {
    stretch->give(block);
  } else {
    c10::free_cpu(block);
  }
}

struct LargeBlocks final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* block = size >= kSmallest ? stretch->take(size) : nullptr;
    if (!block) block = c10::alloc_cpu(size);
    c10::profiledCPUMemoryReporter().New(block, size);
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &give_back;
  }

  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
};

}  // namespace

// 1: from now on large tensors come from here, up to so many bytes of them; 0: the system gave no addresses.
extern "C" int frostline_use_large_blocks(size_t most) {
  if (stretch) return 1;
  auto* made = new Stretch;
  if (!made->reserve(most)) {
    delete made;
    return 0;
  }
  stretch = made;
  c10::SetCPUAllocator(new LargeBlocks, 255);
  return 1;
}

// Bytes that were used and are free: they stay with the process.
extern "C" size_t frostline_free_bytes() {
  return stretch ? stretch->free_bytes() : 0;
}

// Bytes of large tensors that live now; the peak is counted from here on.
extern "C" size_t frostline_live_bytes() {
  return stretch ? stretch->live_bytes() : 0;
}

// Most bytes that lived at once since then.
extern "C" size_t frostline_peak_bytes() {
  return stretch ? stretch->peak_bytes() : 0;
}
