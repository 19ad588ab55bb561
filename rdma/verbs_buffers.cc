#include "rdma/verbs_buffers.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "rdma/verbs_loop.h"

namespace kvcfs::rdma {
namespace {

constexpr uint32_t kShareLeast = 4;  // fewer, and two that only tell of credits do so for ever
constexpr uint32_t kSignalMost = 8;
constexpr uint32_t kFew = 8;  // of the receives, one in so many is left: worth a metric

}  // namespace

// ---- receives

VerbsReceives::VerbsReceives(VerbsDevice* device, uint32_t count)
    : device_(device), count_(count) {}

Result<std::shared_ptr<VerbsReceives>> VerbsReceives::Shared(VerbsLoop* loop, VerbsDevice* device,
                                                             uint32_t count) {
  if (!device->Reserve(count)) {
    return Error{Code::kNoSpace, fmt::format("{}: its completion queue is full", device->name())};
  }
  std::shared_ptr<VerbsReceives> made(new VerbsReceives(device, count));
  ibv_srq_init_attr wanted{};
  wanted.attr.max_wr = count;
  wanted.attr.max_sge = 1;
  made->queue_ = ::ibv_create_srq(device->domain(), &wanted);
  if (made->queue_ == nullptr) {
    return VerbsError(errno, fmt::format("a shared receive queue of {}", device->name()));
  }
  made->loop_ = loop;
  made->work_id_ = uint64_t{loop->AddReceives(made.get())} << 40 | kReceiveBit | kSharedBit;
  KVC_TRY(made->PostAll());
  return made;
}

Result<std::shared_ptr<VerbsReceives>> VerbsReceives::Own(VerbsDevice* device, ibv_qp* pair,
                                                          uint32_t number) {
  if (!device->Reserve(kVerbsReceives)) {
    return Error{Code::kNoSpace, fmt::format("{}: its completion queue is full", device->name())};
  }
  std::shared_ptr<VerbsReceives> made(new VerbsReceives(device, kVerbsReceives));
  made->pair_ = pair;
  made->work_id_ = uint64_t{number} << 40 | kReceiveBit;
  KVC_TRY(made->PostAll());
  return made;
}

VerbsReceives::~VerbsReceives() {
  if (loop_ != nullptr) loop_->RemoveReceives(NumberOfWork(work_id_));
  if (queue_ != nullptr) KVC_CHECK(::ibv_destroy_srq(queue_) == 0);
  device_->Release(count_);
}

Status VerbsReceives::PostAll() {
  arena_.resize(count_ * kMessageBytes);
  KVC_TRY_ASSIGN(memory_, VerbsMemory::Register(device_->domain(), arena_, false));
  for (uint32_t i = 0; i < count_; ++i) returned_.push_back(i);
  return PostReturned();
}

uint32_t VerbsReceives::Share() const {
  if (queue_ == nullptr) return kVerbsReceives;
  return std::clamp(count_ / std::max(links_, 1u), kShareLeast, kVerbsReceives);
}

void VerbsReceives::Completed() {
  --posted_;
  if (posted_ == count_ / kFew && loop_ != nullptr) loop_->CountFewReceives();
}

std::span<std::byte> VerbsReceives::Buffer(uint32_t index) {
  return std::span(arena_).subspan(index * kMessageBytes, kMessageBytes);
}

Status VerbsReceives::PostReturned() {
  while (!returned_.empty()) {
    std::array<ibv_recv_wr, 32> chain{};
    std::array<ibv_sge, 32> places{};
    const size_t count = std::min(returned_.size(), chain.size());
    const auto first = returned_.end() - static_cast<ptrdiff_t>(count);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t index = first[static_cast<ptrdiff_t>(i)];
      places[i] = {.addr = reinterpret_cast<uint64_t>(Buffer(index).data()),
                   .length = kMessageBytes,
                   .lkey = memory_.local_key()};
      chain[i] = {.wr_id = work_id_ | index,
                  .next = i + 1 < count ? &chain[i + 1] : nullptr,
                  .sg_list = &places[i],
                  .num_sge = 1};
    }
    ibv_recv_wr* bad = nullptr;
    const int result = queue_ != nullptr ? ::ibv_post_srq_recv(queue_, chain.data(), &bad)
                                         : ::ibv_post_recv(pair_, chain.data(), &bad);
    const auto posted = result == 0 ? static_cast<ptrdiff_t>(count) : bad - chain.data();
    posted_ += static_cast<uint32_t>(posted);
    returned_.erase(first, first + posted);
    if (result != 0) return VerbsError(result, "posting receives");
  }
  return {};
}

// ---- sends

Result<std::shared_ptr<VerbsSends>> VerbsSends::Make(VerbsLoop* loop, VerbsDevice* device,
                                                     uint32_t count) {
  std::shared_ptr<VerbsSends> made(new VerbsSends(loop));
  made->count_ = count;
  made->arena_.resize(count * kMessageBytes);
  KVC_TRY_ASSIGN(made->memory_, VerbsMemory::Register(device->domain(), made->arena_, false));
  for (uint32_t i = 0; i < count; ++i) made->free_.push_back(i);
  return made;
}

uint32_t VerbsSends::Share() const {
  // Those of kSignalMost - 1 may be of sends that nobody is told of yet.
  return std::clamp(count_ / std::max(links_, 1u), kSignalMost, kVerbsReceives);
}

uint32_t VerbsSends::SignalEvery() const {
  return std::clamp(count_ / (2 * std::max(links_, 1u)), 1u, kSignalMost);
}

std::optional<uint32_t> VerbsSends::Take(const std::shared_ptr<VerbsLink>& link) {
  if (free_.empty()) {
    waiting_[link.get()] = link;
    return std::nullopt;
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  return index;
}

void VerbsSends::Return(uint32_t index) {
  free_.push_back(index);
  if (waiting_.empty()) return;
  for (const auto& [raw, link] : std::exchange(waiting_, {})) {
    if (auto there = link.lock()) loop_->MarkDirty(std::move(there));
  }
}

// ---- staging

Result<std::shared_ptr<VerbsStaging>> VerbsStaging::Make(VerbsDevice* device) {
  auto made = std::make_shared<VerbsStaging>();
  made->arena_.resize(kSmall * kSmallBytes + kLarge * kBytesMax);
  KVC_TRY_ASSIGN(made->memory_, VerbsMemory::Register(device->domain(), made->arena_, false));
  for (uint32_t i = 0; i < kSmall; ++i) made->free_small_.push_back(i);
  for (uint32_t i = 0; i < kLarge; ++i) made->free_large_.push_back(kSmall + i);
  return made;
}

std::optional<uint32_t> VerbsStaging::Take(size_t bytes) {
  if (bytes > kBytesMax) return std::nullopt;
  auto& free = bytes <= kSmallBytes && !free_small_.empty() ? free_small_ : free_large_;
  if (free.empty()) return std::nullopt;
  const uint32_t piece = free.back();
  free.pop_back();
  return piece;
}

void VerbsStaging::Return(uint32_t piece) {
  (piece < kSmall ? free_small_ : free_large_).push_back(piece);
}

std::span<std::byte> VerbsStaging::Piece(uint32_t piece, size_t bytes) {
  const size_t at =
      piece < kSmall ? piece * kSmallBytes : kSmall * kSmallBytes + (piece - kSmall) * kBytesMax;
  return std::span(arena_).subspan(at, bytes);
}

}  // namespace kvcfs::rdma
