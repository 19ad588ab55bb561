// A map from 64-bit keys to 32-bit values in one array of 16-byte cells: for what few blocks have.
//
// Key 0 is not allowed. Linear probing, deletion by shifting back, at most 3/4 full; growing
// doubles it at once (4 ms at 100,000 cells). Threads: one at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace kvcfs::meta {

class FlatMap {
 public:
  std::optional<uint32_t> Get(uint64_t key) const {
    if (count_ == 0) return std::nullopt;
    for (size_t at = Home(key);; at = Next(at)) {
      if (cells_[at].key == key) return cells_[at].value;
      if (cells_[at].key == 0) return std::nullopt;
    }
  }

  void Prefetch(uint64_t key) const {
    if (count_ != 0) __builtin_prefetch(&cells_[Home(key)]);
  }

  void Set(uint64_t key, uint32_t value) {
    if (4 * (count_ + 1) > 3 * cells_.size()) Grow();
    size_t at = Home(key);
    while (cells_[at].key != 0 && cells_[at].key != key) at = Next(at);
    if (cells_[at].key == 0) ++count_;
    cells_[at] = {key, value};
  }

  void Erase(uint64_t key) {
    if (count_ == 0) return;
    size_t hole = Home(key);
    while (cells_[hole].key != key) {
      if (cells_[hole].key == 0) return;
      hole = Next(hole);
    }
    --count_;
    // Whatever follows without a gap and may stand nearer to its home moves into the hole.
    for (size_t at = Next(hole); cells_[at].key != 0; at = Next(at)) {
      const size_t home = Home(cells_[at].key);
      if (((at - home) & mask()) < ((at - hole) & mask())) continue;
      cells_[hole] = cells_[at];
      hole = at;
    }
    cells_[hole] = {};
  }

  size_t size() const { return count_; }
  uint64_t bytes() const { return cells_.capacity() * sizeof(Cell); }

 private:
  struct Cell {
    uint64_t key = 0;
    uint32_t value = 0;
  };
  static_assert(sizeof(Cell) == 16);

  size_t mask() const { return cells_.size() - 1; }
  size_t Home(uint64_t key) const { return (key * 0x9e3779b97f4a7c15 >> 20) & mask(); }
  size_t Next(size_t at) const { return (at + 1) & mask(); }

  void Grow() {
    std::vector<Cell> old(cells_.empty() ? 16 : 2 * cells_.size());
    std::swap(old, cells_);
    count_ = 0;
    for (const Cell& cell : old) {
      if (cell.key != 0) Set(cell.key, cell.value);
    }
  }

  std::vector<Cell> cells_;
  size_t count_ = 0;
};

}  // namespace kvcfs::meta
