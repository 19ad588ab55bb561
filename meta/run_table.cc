#include "meta/run_table.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "base/result.h"

namespace kvcfs::meta {

using namespace layout;  // NOLINT(google-build-using-namespace): this file writes that layout

namespace {

constexpr uint32_t kForksMany = 255;

uint64_t WithLength(uint64_t shape, uint32_t length) {
  return (shape & ~(uint64_t{0xff} << 32)) | uint64_t{length} << 32;
}
uint64_t WithCapacity(uint64_t shape, uint32_t capacity) {
  return (shape & ~(uint64_t{0xff} << 40)) | uint64_t{capacity} << 40;
}

uint64_t ForksKey(uint64_t run, uint32_t offset) {
  return run * kRunBlocksMax + offset;
}

// Bytes stand in words that readers of a stale header may load: stored with care, read at will.
void StoreByte(uint8_t* byte, uint32_t value) {
  std::atomic_ref<uint8_t>(*byte).store(static_cast<uint8_t>(value), std::memory_order_release);
}

}  // namespace

RunTable::RunTable(IndexMemory& memory) : memory_(memory), bodies_(memory) {
  blocks_address_ = memory_.Allocate(1);
  blocks_capacity_ = kPageBytes / kWordBytes;
  AddHeaderBlock();
}

void RunTable::OnBlocksMoved(void (*publish)(void*), void* argument) {
  publish_ = publish;
  publish_argument_ = argument;
}

void RunTable::AddHeaderBlock() {
  constexpr uint64_t kPages = kRunBlockHeaders * kRunHeaderBytes / kPageBytes;
  if (headers_.size() == blocks_capacity_) {
    const uint64_t old = blocks_address_;
    const uint64_t old_pages = blocks_capacity_ * kWordBytes / kPageBytes;
    blocks_address_ = memory_.Allocate(2 * old_pages);
    for (size_t i = 0; i < blocks_capacity_; ++i) {
      StoreWord(memory_.At(blocks_address_) + i, memory_.At(old)[i]);
    }
    blocks_capacity_ *= 2;
    if (publish_ != nullptr) publish_(publish_argument_);
    memory_.Free(old, old_pages);
  }
  const uint64_t address = memory_.Allocate(kPages);
  uint64_t* const words = memory_.At(address);
  for (size_t i = 0; i < kRunBlockHeaders * kRunWords; ++i) StoreWord(words + i, 0);
  StoreWord(memory_.At(blocks_address_) + headers_.size(), address);
  headers_.push_back(words);
  if (publish_ != nullptr) publish_(publish_argument_);
}

void RunTable::StoreHeader(uint64_t run, uint32_t generation, uint64_t parent, uint64_t body,
                           uint64_t shape) {
  uint64_t* const words = Header(run);
  const uint32_t version = Low(words[kRunVersionBegin]);
  const uint32_t old_generation = High(words[kRunVersionBegin]);
  StoreWord(words + kRunVersionBegin, Pair(version + 1, old_generation));
  StoreWord(words + kRunVersionEnd, version + 1);
  StoreWord(words + kRunParent, parent);
  StoreWord(words + kRunBody, body);
  StoreWord(words + kRunShape, shape);
  StoreWord(words + kRunVersionEnd, version + 2);
  StoreWord(words + kRunVersionBegin, Pair(version + 2, generation));
}

uint64_t RunTable::Create(uint32_t ns, const Place& parent, uint32_t ordinal) {
  uint64_t run = next_id_;
  if (!free_ids_.empty()) {
    run = free_ids_.back();
    free_ids_.pop_back();
  } else {
    KVC_CHECK(next_id_ < UINT32_MAX);
    if (next_id_ == headers_.size() * kRunBlockHeaders) AddHeaderBlock();
    ++next_id_;
  }
  ++count_;
  // The generation went up when the id was freed; 0 is nobody's.
  const uint32_t generation = std::max(1u, this->generation(run));
  StoreHeader(run, generation, PackPlace(parent), Pair(AllocateBody(0, run), ns),
              WithCapacity(ordinal, BodyStore::kCapacities[0]));
  return run;
}

uint32_t RunTable::Append(uint64_t run, const BlockKey& key, const PackedState& state) {
  const uint32_t offset = length(run);
  if (offset == BodyOf(run).capacity) {
    MoveBody(run, offset + 1);
    Compact();
  }
  const RunBody body = BodyOf(run);
  StoreWord(body.tag(offset), key.Word(0));
  for (size_t i = 0; i < 3; ++i) StoreWord(body.rest(offset) + i, key.Word(i + 1));
  SetState(run, offset, state);
  StoreByte(body.forks(offset), 0);
  const uint64_t* const words = Header(run);
  StoreHeader(run, generation(run), words[kRunParent], words[kRunBody],
              WithLength(words[kRunShape], offset + 1));
  return offset;
}

uint32_t RunTable::AllocateBody(size_t size_class, uint64_t owner) {
  const uint32_t body = bodies_.Allocate(size_class);
  StoreWord(bodies_.At(body, BodyStore::kCapacities[size_class]).owner(), owner);
  return body;
}

// The new body is whole before the header names it; who reads the old one finds the version of the
// header changed.
void RunTable::MoveBody(uint64_t run, uint32_t capacity) {
  const size_t size_class = BodyStore::SizeClassFor(capacity);
  const uint32_t new_body = AllocateBody(size_class, run);
  const RunBody from = BodyOf(run);
  const RunBody to = bodies_.At(new_body, BodyStore::kCapacities[size_class]);
  const size_t count = length(run);
  for (size_t i = 0; i < count; ++i) StoreWord(to.tag(i), *from.tag(i));
  for (size_t i = 0; i < 3 * count; ++i) {
    StoreWord(to.rest(0) + i, from.rest(0)[i]);
    StoreWord(to.state(0) + i, from.state(0)[i]);
  }
  for (size_t i = 0; i < count; ++i) StoreByte(to.forks(i), *from.forks(i));
  const uint64_t* const words = Header(run);
  const uint32_t old_body = Low(words[kRunBody]);
  StoreHeader(run, generation(run), words[kRunParent], Pair(new_body, namespace_of(run)),
              WithCapacity(words[kRunShape], static_cast<uint32_t>(to.capacity)));
  bodies_.Free(old_body);
}

void RunTable::Compact() {
  const std::optional<BodyStore::Victim> victim = bodies_.PickVictim();
  if (!victim) return;
  const uint32_t capacity = BodyStore::kCapacities[victim->size_class];
  // A body is in use if the run that it was given to still says so.
  std::vector<uint64_t> owners;
  for (uint32_t i = 0; i < victim->count; ++i) {
    const uint32_t body = victim->first + i * victim->step;
    const uint64_t owner = Low(*bodies_.At(body, capacity).owner());
    if (owner < next_id_ && length(owner) > 0 && Low(Word(owner, kRunBody)) == body) {
      owners.push_back(owner);
    }
  }
  for (const uint64_t owner : owners) MoveBody(owner, capacity);
}

void RunTable::Truncate(uint64_t run) {
  const uint32_t left = length(run) - 1;
  KVC_CHECK(forks(run, left) == 0);
  const uint64_t* const words = Header(run);
  StoreHeader(run, generation(run), words[kRunParent], words[kRunBody],
              WithLength(words[kRunShape], left) | kRunFrozen);
  if (left > 0 && 2 * left <= ShapeCapacity(words[kRunShape])) MoveBody(run, left);
  Compact();
}

void RunTable::Free(uint64_t run) {
  const uint64_t* const words = Header(run);
  KVC_CHECK(length(run) == 0);
  const uint32_t body = Low(words[kRunBody]);
  const uint32_t next = generation(run) + 1;
  StoreHeader(run, next == 0 ? 1 : next, 0, 0, 0);
  bodies_.Free(body);
  free_ids_.push_back(static_cast<uint32_t>(run));
  --count_;
}

BlockKey RunTable::key(uint64_t run, uint32_t offset) const {
  const RunBody body = BodyOf(run);
  BlockKey key;
  std::memcpy(key.bytes.data(), body.tag(offset), 8);
  std::memcpy(key.bytes.data() + 8, body.rest(offset), 24);
  return key;
}

PackedState RunTable::state(uint64_t run, uint32_t offset) const {
  const uint64_t* const words = BodyOf(run).state(offset);
  return {{words[0], words[1], words[2]}};
}

void RunTable::SetState(uint64_t run, uint32_t offset, const PackedState& state) {
  uint64_t* const words = BodyOf(run).state(offset);
  for (size_t i = 0; i < 3; ++i) StoreWord(words + i, state.words[i]);
}

uint32_t RunTable::forks(uint64_t run, uint32_t offset) const {
  const uint32_t count = *BodyOf(run).forks(offset);
  return count < kForksMany ? count : many_forks_.Get(ForksKey(run, offset)).value();
}

void RunTable::AddFork(uint64_t run, uint32_t offset) {
  const uint32_t count = forks(run, offset) + 1;
  StoreByte(BodyOf(run).forks(offset), std::min(count, kForksMany));
  if (count >= kForksMany) many_forks_.Set(ForksKey(run, offset), count);
}

void RunTable::RemoveFork(uint64_t run, uint32_t offset) {
  const uint32_t count = forks(run, offset) - 1;
  StoreByte(BodyOf(run).forks(offset), std::min(count, kForksMany));
  if (count >= kForksMany) {
    many_forks_.Set(ForksKey(run, offset), count);
  } else if (count + 1 == kForksMany) {
    many_forks_.Erase(ForksKey(run, offset));
  }
}

bool RunTable::HasForks(uint64_t run, uint32_t from_offset) const {
  const uint8_t* const forks = BodyOf(run).forks(0);
  return std::any_of(forks + from_offset, forks + length(run), [](uint8_t n) { return n > 0; });
}

void RunTable::SetQueued(uint64_t run, bool queued, uint32_t at) {
  uint64_t* const words = Header(run);
  const uint64_t shape = words[kRunShape] & ~kRunInQueue;
  // Nothing that a reader looks at: no version.
  StoreWord(words + kRunShape, shape | (queued ? kRunInQueue : 0));
  StoreWord(words + kRunQueued, at);
}

void RunTable::PrefetchKeys(uint64_t run, uint32_t offset, uint32_t count) const {
  constexpr size_t kLineWords = 8;
  const RunBody body = BodyOf(run);
  const uint64_t* const tags = body.tag(offset);
  const uint64_t* const rest = body.rest(offset);
  for (size_t i = 0; i < count; i += kLineWords) __builtin_prefetch(tags + i);
  __builtin_prefetch(tags + count - 1);
  for (size_t i = 0; i < 3 * size_t{count}; i += kLineWords) __builtin_prefetch(rest + i);
  __builtin_prefetch(rest + 3 * size_t{count} - 1);
}

uint64_t RunTable::bytes() const {
  return headers_.size() * kRunBlockHeaders * kRunHeaderBytes + blocks_capacity_ * kWordBytes +
         bodies_.bytes() + many_forks_.bytes() + free_ids_.capacity() * sizeof(uint32_t);
}

void RunTable::CheckInvariants() const {
  std::vector<uint32_t> bodies;
  uint64_t runs = 0, many = 0;
  for (uint64_t run = 1; run < next_id_; ++run) {
    const uint64_t* const words = Header(run);
    KVC_CHECK(Low(words[kRunVersionBegin]) == Low(words[kRunVersionEnd]));
    KVC_CHECK(Low(words[kRunVersionBegin]) % 2 == 0);
    if (length(run) == 0) continue;
    ++runs;
    const uint32_t capacity = ShapeCapacity(words[kRunShape]);
    KVC_CHECK(length(run) <= capacity && capacity <= kRunBlocksMax);
    bodies.push_back(Low(words[kRunBody]));
    KVC_CHECK(Low(*BodyOf(run).owner()) == run);
    for (uint32_t i = 0; i < length(run); ++i) many += forks(run, i) >= kForksMany ? 1 : 0;
  }
  KVC_CHECK(runs == count_ && many == many_forks_.size());
  bodies_.CheckInvariants(bodies);
}

}  // namespace kvcfs::meta
