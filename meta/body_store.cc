#include "meta/body_store.h"

#include <algorithm>

#include "base/result.h"

namespace kvcfs::meta {

using layout::kPageBytes;
using layout::kWordBytes;

size_t BodyStore::SizeClassFor(uint32_t blocks) {
  return static_cast<size_t>(std::lower_bound(kCapacities.begin(), kCapacities.end(), blocks) -
                             kCapacities.begin());
}

void BodyStore::AddChunk(size_t size_class) {
  auto index = static_cast<uint32_t>(chunks_.size());
  if (unused_.empty()) {
    chunks_.emplace_back();
  } else {
    index = unused_.back();
    unused_.pop_back();
  }
  SizeClass& all = classes_[size_class];
  const uint64_t address = memory_.Allocate(kChunkPages);
  chunks_[index] = {.address = address,
                    .size_class = static_cast<uint32_t>(size_class),
                    .at = static_cast<uint32_t>(all.chunks.size())};
  all.chunks.push_back(index);
  SetRoomy(index, true);
  const size_t page = address / kPageBytes;
  if (chunk_of_.size() < page + kChunkPages) chunk_of_.resize(page + kChunkPages, 0);
  std::fill_n(chunk_of_.begin() + static_cast<ptrdiff_t>(page), kChunkPages, index);
  free_bytes_ += BodiesIn(size_class) * BodyBytes(size_class);
}

void BodyStore::RemoveChunk(uint32_t index) {
  Chunk& chunk = chunks_[index];
  SizeClass& all = classes_[chunk.size_class];
  SetRoomy(index, false);
  all.chunks[chunk.at] = all.chunks.back();
  chunks_[all.chunks[chunk.at]].at = chunk.at;
  all.chunks.pop_back();
  free_bytes_ -= BodiesIn(chunk.size_class) * BodyBytes(chunk.size_class);
  memory_.Free(chunk.address, kChunkPages);
  chunk = Chunk();
  unused_.push_back(index);
}

void BodyStore::SetRoomy(uint32_t index, bool roomy) {
  Chunk& chunk = chunks_[index];
  std::vector<uint32_t>& list = classes_[chunk.size_class].roomy;
  if (roomy == (chunk.roomy_at != kNowhere)) return;
  if (roomy) {
    chunk.roomy_at = static_cast<uint32_t>(list.size());
    list.push_back(index);
    return;
  }
  list[chunk.roomy_at] = list.back();
  chunks_[list[chunk.roomy_at]].roomy_at = chunk.roomy_at;
  list.pop_back();
  chunk.roomy_at = kNowhere;
}

uint32_t BodyStore::Allocate(size_t size_class) {
  SizeClass& all = classes_[size_class];
  if (all.roomy.empty()) AddChunk(size_class);
  const uint32_t index = all.roomy.back();
  Chunk& chunk = chunks_[index];
  if (++chunk.live == BodiesIn(size_class)) SetRoomy(index, false);
  ++all.live;
  free_bytes_ -= BodyBytes(size_class);
  live_bytes_ += BodyBytes(size_class);
  if (chunk.free_head != 0) {
    const uint32_t body = chunk.free_head;
    chunk.free_head = layout::Low(*memory_.At(uint64_t{body} * kWordBytes));
    return body;
  }
  return static_cast<uint32_t>((chunk.address + BodyBytes(size_class) * chunk.begun++) /
                               kWordBytes);
}

void BodyStore::Free(uint32_t body) {
  const uint32_t index = chunk_of_[uint64_t{body} * kWordBytes / kPageBytes];
  Chunk& chunk = chunks_[index];
  --classes_[chunk.size_class].live;
  free_bytes_ += BodyBytes(chunk.size_class);
  live_bytes_ -= BodyBytes(chunk.size_class);
  if (--chunk.live == 0) {
    RemoveChunk(index);
    return;
  }
  layout::StoreWord(memory_.At(uint64_t{body} * kWordBytes), chunk.free_head);
  chunk.free_head = body;
  if (!chunk.leaving) SetRoomy(index, true);
}

std::optional<BodyStore::Victim> BodyStore::PickVictim() {
  // Up to one half-empty chunk a size is no waste that moving could cure.
  constexpr uint64_t kSlackBytes = kCapacities.size() * kChunkBytes / 2;
  constexpr uint32_t kPatience = 256;
  if (free_bytes_ <= live_bytes_ / 16 + kSlackBytes) return std::nullopt;
  if (patience_ > 0) {
    --patience_;
    return std::nullopt;
  }
  size_t worst = 0;
  for (size_t i = 0; i < classes_.size(); ++i) {
    if (FreeBodies(i) * BodyBytes(i) > FreeBodies(worst) * BodyBytes(worst)) worst = i;
  }
  // Its other chunks must have room for what is in the victim.
  if (FreeBodies(worst) < BodiesIn(worst)) {
    patience_ = kPatience;
    return std::nullopt;
  }
  const std::vector<uint32_t>& chunks = classes_[worst].chunks;
  const uint32_t sparsest =
      *std::min_element(chunks.begin(), chunks.end(),
                        [&](uint32_t a, uint32_t b) { return chunks_[a].live < chunks_[b].live; });
  chunks_[sparsest].leaving = true;
  SetRoomy(sparsest, false);
  return Victim{worst, static_cast<uint32_t>(chunks_[sparsest].address / kWordBytes),
                static_cast<uint32_t>(BodyBytes(worst) / kWordBytes), chunks_[sparsest].begun};
}

uint64_t BodyStore::bytes() const {
  uint64_t bytes = chunks_.capacity() * sizeof(Chunk) +
                   (chunk_of_.capacity() + unused_.capacity()) * sizeof(uint32_t);
  for (const SizeClass& all : classes_) {
    bytes += all.chunks.size() * kChunkBytes +
             (all.roomy.capacity() + all.chunks.capacity()) * sizeof(uint32_t);
  }
  return bytes;
}

void BodyStore::CheckInvariants(const std::vector<uint32_t>& bodies) const {
  std::vector<uint32_t> live(chunks_.size());
  for (const uint32_t body : bodies) {
    const uint32_t index = chunk_of_[uint64_t{body} * kWordBytes / kPageBytes];
    const Chunk& chunk = chunks_[index];
    KVC_CHECK(chunk.address != 0 && !chunk.leaving);
    const uint64_t inside = uint64_t{body} * kWordBytes - chunk.address;
    KVC_CHECK(inside % BodyBytes(chunk.size_class) == 0);
    KVC_CHECK(inside / BodyBytes(chunk.size_class) < chunk.begun);
    ++live[index];
  }
  uint64_t free_bytes = 0;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    KVC_CHECK(live[i] == chunks_[i].live);
    if (chunks_[i].address == 0) continue;
    const size_t size_class = chunks_[i].size_class;
    free_bytes += (BodiesIn(size_class) - live[i]) * BodyBytes(size_class);
  }
  KVC_CHECK(free_bytes == free_bytes_);
}

}  // namespace kvcfs::meta
