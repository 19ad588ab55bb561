// Which blocks have a record, and what a match says of them, kept close together: the records
// themselves are large and lie all over the memory.
//
// An answer is put here when it was first made, and dropped before its record is changed. What is
// here may be shown in a table that others read one-sided (match_table.h), and goes there, too.
// Threads: one at a time.   Memory: 16 to 32 B for each record, and 192 B for each answer.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "meta/cluster_messages.h"
#include "meta/flat_map.h"
#include "meta/match_table.h"

namespace kvcfs::meta {

class MatchAnswers {
 public:
  static constexpr size_t kPlacesMax = 3;
  static constexpr uint32_t kNone = UINT32_MAX;
  struct alignas(64) Answer {
    BlockId id;
    BlockKey parent;
    uint32_t ordinal = 0;
    uint32_t length = 0, crc32c = 0, mtime_s = 0, children = 0;
    uint32_t place_count = 0;
    std::array<Place, kPlacesMax> places;  // the first in the second line, the others behind
    uint32_t shown_at = kNone;             // in the table, unless another took its place

    void AppendTo(std::vector<FoundBlock>* blocks) const { FillIn(blocks->emplace_back()); }
    void FillIn(FoundBlock& block) const {
      block.key = id.key;
      block.length = length;
      block.crc32c = crc32c;
      block.mtime_s = mtime_s;
      block.places.assign(places.data(), places.data() + place_count);
      block.children = children;
    }
  };
  static_assert(sizeof(Answer) == 192 && offsetof(Answer, places) + sizeof(Place) == 128);

  // From now on; it outlives this.
  void ShowIn(MatchTable* table) { table_ = table; }

  // Two steps, so that what is far in memory comes for many at once.
  void PrefetchPlace(const BlockId& id) const { index_.Prefetch(Hash(id)); }
  void PrefetchAnswer(const BlockId& id) const {
    const uint32_t at = index_.Get(Hash(id)).value_or(kNone);
    if (at >= kMany) return;
    const auto* lines = reinterpret_cast<const char*>(&answers_[at]);
    __builtin_prefetch(lines);
    __builtin_prefetch(lines + 64);
  }

  // False: it has no record.
  bool MayHaveRecord(const BlockId& id) const { return index_.Get(Hash(id)).has_value(); }
  // Null: none is known. Until the next change of anything here.
  const Answer* Find(const BlockId& id) const {
    const uint32_t at = index_.Get(Hash(id)).value_or(kNone);
    return at < kMany && answers_[at].id == id ? &answers_[at] : nullptr;
  }

  // A record is there now, or no more.
  void AddRecord(const BlockId& id) {
    Drop(id);
    // Of several with one hash nothing is remembered, nor which of them are left.
    index_.Set(Hash(id), index_.Get(Hash(id)).has_value() ? kMany : kNone);
  }
  void EraseRecord(const BlockId& id) {
    Drop(id);
    if (index_.Get(Hash(id)) == kNone) index_.Erase(Hash(id));
  }

  // Of a block that has a record. Not of blocks in more places than kPlacesMax.
  void Put(const BlockId& id, const BlockKey& parent, uint32_t ordinal, const FoundBlock& block) {
    if (block.places.size() > kPlacesMax || index_.Get(Hash(id)) != kNone) return;
    if (free_.empty()) {
      free_.push_back(static_cast<uint32_t>(answers_.size()));
      answers_.emplace_back();
    }
    const uint32_t at = free_.back();
    free_.pop_back();
    Answer& answer = answers_[at];
    answer.id = id;
    answer.parent = parent;
    answer.ordinal = ordinal;
    answer.length = block.length;
    answer.crc32c = block.crc32c;
    answer.mtime_s = block.mtime_s;
    answer.children = block.children;
    answer.place_count = static_cast<uint32_t>(block.places.size());
    answer.shown_at = kNone;
    for (size_t i = 0; i < block.places.size(); ++i) answer.places[i] = block.places[i];
    index_.Set(Hash(id), at);
  }
  // What is known of block `index` of a group stands in the table, if there is one.
  void Show(const BlockId& id, const BlockId& anchor, uint32_t index) {
    if (table_ == nullptr) return;
    const uint32_t at = index_.Get(Hash(id)).value_or(kNone);
    if (at >= kMany || answers_[at].id != id) return;
    Answer& answer = answers_[at];
    if (table_->Has(answer.shown_at, id)) return;
    FoundBlock block;
    answer.FillIn(block);
    answer.shown_at =
        table_->Put(anchor, index, id, answer.parent, answer.ordinal, block).value_or(kNone);
  }
  // What was said of it is not said any more.
  void Drop(const BlockId& id) {
    const uint32_t at = index_.Get(Hash(id)).value_or(kNone);
    if (at >= kMany) return;
    if (answers_[at].shown_at != kNone) table_->Remove(answers_[at].shown_at, answers_[at].id);
    free_.push_back(at);
    index_.Set(Hash(id), kNone);
  }

 private:
  static constexpr uint32_t kMany = kNone - 1;  // this and kNone: instead of an answer

  static uint64_t Hash(const BlockId& id) {
    const uint64_t hash = BlockIdHash()(id);
    return hash == 0 ? 1 : hash;
  }
  MatchTable* table_ = nullptr;
  FlatMap index_;
  std::vector<Answer> answers_;
  std::vector<uint32_t> free_;
};

}  // namespace kvcfs::meta
