#include "meta/run_table.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>

#include "base/result.h"

namespace kvcfs::meta {

using namespace layout;  // NOLINT(google-build-using-namespace): this file writes that layout

namespace {

// Fine steps: an average run of 8 wastes less than a twelfth of its body.
constexpr uint32_t kCapacities[] = {1,  2,  3,  4,  5,  6,  7,  8,  10, 12,
                                    14, 16, 20, 24, 28, 32, 40, 48, 56, 64};
constexpr size_t kSizeClasses = std::size(kCapacities);
static_assert(kCapacities[kSizeClasses - 1] == kRunBlocksMax);

constexpr uint64_t kChunkBytes = 16 * kPageBytes;
constexpr uint32_t kForksMany = 255;

size_t SizeClassFor(uint32_t blocks) {
  return static_cast<size_t>(
      std::lower_bound(std::begin(kCapacities), std::end(kCapacities), blocks) -
      std::begin(kCapacities));
}

constexpr uint64_t BodyWords(uint64_t capacity) {
  return 7 * capacity + (capacity + 7) / 8;
}

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
uint8_t* ForkByte(uint64_t* words, size_t capacity, uint32_t offset) {
  return reinterpret_cast<uint8_t*>(words + 7 * capacity) + offset;
}
void StoreByte(uint8_t* byte, uint32_t value) {
  std::atomic_ref<uint8_t>(*byte).store(static_cast<uint8_t>(value), std::memory_order_release);
}

}  // namespace

RunTable::RunTable(IndexMemory& memory) : memory_(memory), roomy_(kSizeClasses) {
  static_assert(kChunkPages * kPageBytes == kChunkBytes);
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
  StoreHeader(run, generation, PackPlace(parent), Pair(AllocateBody(0), ns),
              WithCapacity(ordinal, kCapacities[0]));
  return run;
}

uint32_t RunTable::Append(uint64_t run, const BlockKey& key, const PackedState& state) {
  const uint32_t offset = length(run);
  if (offset == BodyOf(run).capacity) MoveBody(run, offset + 1);
  const Body body = BodyOf(run);
  uint64_t* const rest = body.words + body.capacity + 3 * size_t{offset};
  StoreWord(body.words + offset, key.Word(0));
  for (size_t i = 0; i < 3; ++i) StoreWord(rest + i, key.Word(i + 1));
  SetState(run, offset, state);
  StoreByte(ForkByte(body.words, body.capacity, offset), 0);
  const uint64_t* const words = Header(run);
  StoreHeader(run, generation(run), words[kRunParent], words[kRunBody],
              WithLength(words[kRunShape], offset + 1));
  return offset;
}

void RunTable::MoveBody(uint64_t run, uint32_t capacity) {
  const size_t size_class = SizeClassFor(capacity);
  const uint32_t to_body = AllocateBody(size_class);
  const Body from = BodyOf(run);
  const Body to = {memory_.At(uint64_t{to_body} * kWordBytes), kCapacities[size_class]};
  const uint32_t count = length(run);
  for (size_t i = 0; i < count; ++i) StoreWord(to.words + i, from.words[i]);
  for (size_t part : {1, 4}) {
    for (size_t i = 0; i < 3 * size_t{count}; ++i) {
      StoreWord(to.words + part * to.capacity + i, from.words[part * from.capacity + i]);
    }
  }
  for (uint32_t i = 0; i < count; ++i) {
    StoreByte(ForkByte(to.words, to.capacity, i), *ForkByte(from.words, from.capacity, i));
  }
  const uint64_t* const words = Header(run);
  const uint32_t old_body = Low(words[kRunBody]);
  StoreHeader(run, generation(run), words[kRunParent], Pair(to_body, namespace_of(run)),
              WithCapacity(words[kRunShape], kCapacities[size_class]));
  FreeBody(old_body, SizeClassFor(static_cast<uint32_t>(from.capacity)));
}

void RunTable::Truncate(uint64_t run) {
  const uint32_t left = length(run) - 1;
  KVC_CHECK(forks(run, left) == 0);
  const uint64_t* const words = Header(run);
  StoreHeader(run, generation(run), words[kRunParent], words[kRunBody],
              WithLength(words[kRunShape], left) | kRunFrozen);
  if (left > 0 && 2 * left <= ShapeCapacity(words[kRunShape])) MoveBody(run, left);
}

void RunTable::Free(uint64_t run) {
  const uint64_t* const words = Header(run);
  KVC_CHECK(length(run) == 0);
  const uint32_t body = Low(words[kRunBody]);
  const uint32_t capacity = ShapeCapacity(words[kRunShape]);
  const uint32_t next = generation(run) + 1;
  StoreHeader(run, next == 0 ? 1 : next, 0, 0, 0);
  FreeBody(body, SizeClassFor(capacity));
  free_ids_.push_back(static_cast<uint32_t>(run));
  --count_;
}

BlockKey RunTable::key(uint64_t run, uint32_t offset) const {
  const Body body = BodyOf(run);
  BlockKey key;
  std::memcpy(key.bytes.data(), body.words + offset, 8);
  std::memcpy(key.bytes.data() + 8, body.words + body.capacity + 3 * size_t{offset}, 24);
  return key;
}

PackedState RunTable::state(uint64_t run, uint32_t offset) const {
  const Body body = BodyOf(run);
  const uint64_t* const words = body.words + 4 * body.capacity + 3 * size_t{offset};
  return {{words[0], words[1], words[2]}};
}

void RunTable::SetState(uint64_t run, uint32_t offset, const PackedState& state) {
  const Body body = BodyOf(run);
  uint64_t* const words = body.words + 4 * body.capacity + 3 * size_t{offset};
  for (size_t i = 0; i < 3; ++i) StoreWord(words + i, state.words[i]);
}

uint32_t RunTable::forks(uint64_t run, uint32_t offset) const {
  const Body body = BodyOf(run);
  const uint32_t count = *ForkByte(body.words, body.capacity, offset);
  return count < kForksMany ? count : many_forks_.Get(ForksKey(run, offset)).value();
}

void RunTable::AddFork(uint64_t run, uint32_t offset) {
  const Body body = BodyOf(run);
  const uint32_t count = forks(run, offset) + 1;
  StoreByte(ForkByte(body.words, body.capacity, offset), std::min(count, kForksMany));
  if (count >= kForksMany) many_forks_.Set(ForksKey(run, offset), count);
}

void RunTable::RemoveFork(uint64_t run, uint32_t offset) {
  const Body body = BodyOf(run);
  const uint32_t count = forks(run, offset) - 1;
  StoreByte(ForkByte(body.words, body.capacity, offset), std::min(count, kForksMany));
  if (count >= kForksMany) {
    many_forks_.Set(ForksKey(run, offset), count);
  } else if (count + 1 == kForksMany) {
    many_forks_.Erase(ForksKey(run, offset));
  }
}

bool RunTable::HasForks(uint64_t run, uint32_t from_offset) const {
  const Body body = BodyOf(run);
  const uint8_t* const forks = ForkByte(body.words, body.capacity, 0);
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
  const Body body = BodyOf(run);
  const uint64_t* const tags = body.words + offset;
  const uint64_t* const rest = body.words + body.capacity + 3 * size_t{offset};
  for (size_t i = 0; i < count; i += kLineWords) __builtin_prefetch(tags + i);
  __builtin_prefetch(tags + count - 1);
  for (size_t i = 0; i < 3 * size_t{count}; i += kLineWords) __builtin_prefetch(rest + i);
  __builtin_prefetch(rest + 3 * size_t{count} - 1);
}

// ---- bodies: chunks of one size; an empty chunk goes back, so that no size keeps what it once
// needed (a restart inserts all first blocks, then all second ones ...).

uint32_t RunTable::AllocateBody(size_t size_class) {
  const uint64_t words = BodyWords(kCapacities[size_class]);
  const auto bodies = static_cast<uint32_t>(kChunkBytes / kWordBytes / words);
  auto& roomy = roomy_[size_class];
  while (!roomy.empty()) {
    Chunk& chunk = chunks_[roomy.back()];
    if (chunk.address != 0 && chunk.live < bodies) break;
    chunk.listed = false;
    if (chunk.address == 0) free_chunks_.push_back(roomy.back());
    roomy.pop_back();
  }
  if (roomy.empty()) {
    uint32_t index = static_cast<uint32_t>(chunks_.size());
    if (free_chunks_.empty()) {
      chunks_.emplace_back();
    } else {
      index = free_chunks_.back();
      free_chunks_.pop_back();
    }
    const uint64_t address = memory_.Allocate(kChunkPages);
    chunks_[index] = {
        .address = address, .size_class = static_cast<uint32_t>(size_class), .listed = true};
    ++chunk_count_;
    const size_t page = address / kPageBytes;
    if (chunk_of_.size() < page + kChunkPages) chunk_of_.resize(page + kChunkPages, 0);
    std::fill_n(chunk_of_.begin() + static_cast<ptrdiff_t>(page), kChunkPages, index);
    roomy.push_back(index);
  }
  Chunk& chunk = chunks_[roomy.back()];
  ++chunk.live;
  if (chunk.free_head != 0) {
    const uint32_t body = chunk.free_head;
    chunk.free_head = Low(*memory_.At(uint64_t{body} * kWordBytes));
    return body;
  }
  return static_cast<uint32_t>(chunk.address / kWordBytes + words * chunk.begun++);
}

void RunTable::FreeBody(uint32_t body, size_t size_class) {
  const uint32_t index = chunk_of_[uint64_t{body} * kWordBytes / kPageBytes];
  Chunk& chunk = chunks_[index];
  if (--chunk.live == 0) {
    memory_.Free(chunk.address, kChunkPages);
    --chunk_count_;
    chunk.address = 0;
    // While it is listed somewhere its number must not get another meaning.
    if (!chunk.listed) free_chunks_.push_back(index);
    return;
  }
  StoreWord(memory_.At(uint64_t{body} * kWordBytes), chunk.free_head);
  chunk.free_head = body;
  if (!chunk.listed) {
    chunk.listed = true;
    roomy_[size_class].push_back(index);
  }
}

uint64_t RunTable::bytes() const {
  return headers_.size() * kRunBlockHeaders * kRunHeaderBytes + chunk_count_ * kChunkBytes +
         blocks_capacity_ * kWordBytes + many_forks_.bytes() + chunks_.capacity() * sizeof(Chunk) +
         (free_ids_.capacity() + chunk_of_.capacity()) * sizeof(uint32_t);
}

void RunTable::CheckInvariants() const {
  std::vector<uint32_t> live(chunks_.size());
  uint64_t runs = 0, many = 0;
  for (uint64_t run = 1; run < next_id_; ++run) {
    const uint64_t* const words = Header(run);
    KVC_CHECK(Low(words[kRunVersionBegin]) == Low(words[kRunVersionEnd]));
    KVC_CHECK(Low(words[kRunVersionBegin]) % 2 == 0);
    if (length(run) == 0) continue;
    ++runs;
    const uint32_t capacity = ShapeCapacity(words[kRunShape]);
    KVC_CHECK(length(run) <= capacity && capacity <= kRunBlocksMax);
    const uint32_t chunk = chunk_of_[uint64_t{Low(words[kRunBody])} * kWordBytes / kPageBytes];
    KVC_CHECK(chunks_[chunk].address != 0);
    KVC_CHECK(kCapacities[chunks_[chunk].size_class] == capacity);
    ++live[chunk];
    for (uint32_t i = 0; i < length(run); ++i) many += forks(run, i) >= kForksMany ? 1 : 0;
  }
  KVC_CHECK(runs == count_ && many == many_forks_.size());
  for (size_t i = 0; i < chunks_.size(); ++i) KVC_CHECK(live[i] == chunks_[i].live);
}

}  // namespace kvcfs::meta
