// The runs that end in a leaf, by when that leaf was last used: a heap of hints.
//
// An entry says "not used before this second"; it may be older than the truth and is put right when
// its turn comes, so that using a block costs nothing here. Entries that mean nothing any more are
// left where they are. Threads: one at a time. Memory: 8 B an entry.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace kvcfs::meta {

class LeafQueue {
 public:
  struct Entry {
    uint32_t second = 0;
    uint32_t run = 0;

    // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 of <=> for a pointer.
    friend auto operator<=>(const Entry&, const Entry&) = default;
  };

  bool empty() const { return heap_.empty(); }
  uint64_t size() const { return heap_.size(); }
  // In no order that means anything.
  const Entry& At(uint64_t place) const { return heap_[place]; }

  // False: pushed, but there are more than `wanted` entries now: call Keep.
  bool Push(const Entry& entry, uint64_t wanted) {
    heap_.push_back(entry);
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    return heap_.size() <= wanted + kSlack;
  }

  Entry Pop() {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const Entry entry = heap_.back();
    heap_.pop_back();
    return entry;
  }

  template <typename Wanted>
  void Keep(Wanted&& wanted) {
    std::erase_if(heap_, [&](const Entry& entry) { return !wanted(entry); });
    // One that was left behind by an earlier run of the same number may look like the real one.
    std::sort(heap_.begin(), heap_.end());
    heap_.erase(std::unique(heap_.begin(), heap_.end()), heap_.end());
    // Sorted is a heap, too.
  }

  uint64_t bytes() const { return heap_.capacity() * sizeof(Entry); }

 private:
  static constexpr uint64_t kSlack = 1024;

  std::vector<Entry> heap_;
};

}  // namespace kvcfs::meta
