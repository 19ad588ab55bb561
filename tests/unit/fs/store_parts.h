// What the stores of a host stand on, in temporary directories: records, slots, segments. For
// fixtures to inherit; can crash and come back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <gtest/gtest.h>
#include <stdlib.h>

#include "fs/block_store.h"
#include "fs/resident_set.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/meta_store.h"

namespace kvcfs::fs {

// The segments' entries are all of a BlockStore; there are no files.
class BlockOwner final : public iouring::EntryOwner {
 public:
  BlockStore* blocks = nullptr;
  iouring::Fate Judge(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override {
    return blocks->Judge(meta, place);
  }
  void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
             const iouring::SegmentPlace& now) override {
    blocks->Moved(meta, before, now);
  }
  void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override {
    blocks->Lost(meta, place);
  }
  void Shed(uint64_t bytes) override { blocks->Shed(bytes); }
};

class StoreParts {
 protected:
  using Newer = std::function<void(const iouring::EntryMeta&, const iouring::SegmentPlace&)>;

  StoreParts() {
    char dram[] = "/dev/shm/kvc-store-XXXXXX", disk[] = "/tmp/kvc-store-XXXXXX";
    EXPECT_NE(::mkdtemp(dram), nullptr);
    EXPECT_NE(::mkdtemp(disk), nullptr);
    dram_ = dram;
    disk_ = disk;
  }
  ~StoreParts() {
    CloseParts();
    std::filesystem::remove_all(dram_);
    std::filesystem::remove_all(disk_);
  }
  StoreParts(const StoreParts&) = delete;
  StoreParts& operator=(const StoreParts&) = delete;

  // `applied`: what the records say of how much of the segments they have; `newer` gets the rest.
  void OpenParts(const std::function<uint64_t(meta::MetaStore&)>& applied, const Newer& newer) {
    meta::MetaOpenReport report;
    auto store = meta::MetaStore::Open({.directory = disk_ + "/meta"}, &report);
    ASSERT_TRUE(store.ok()) << store.error().text;
    meta_ = std::move(*store);
    auto slots = iouring::SlotTier::Open({.directory = dram_, .capacity_bytes = dram_bytes_});
    ASSERT_TRUE(slots.ok()) << slots.error().text;
    slots_ = std::move(*slots);
    if (nvme_bytes_ > 0) {
      iouring::SegmentStoreOptions segments;
      segments.directory = disk_ + "/segments";
      segments.node_uuid = iouring::Uuid{9};
      segments.capacity_bytes = nvme_bytes_;
      segments.segment_bytes = 4u << 20;
      auto opened = iouring::SegmentStore::Open(segments, applied(*meta_), newer);
      ASSERT_TRUE(opened.ok()) << opened.error().text;
      segments_ = std::move(*opened);
    }
    resident_ = std::make_unique<ResidentSet>(*slots_, ResidentSetOptions{});
  }
  // After what uses them, but for the segments, whose threads use that. What lies in the
  // directories stays, as after kill -9.
  void CloseParts() {
    segments_.reset();
    resident_.reset();
    slots_.reset();
    meta_.reset();
  }
  // As if the machine had died.
  void ForgetDram() const {
    for (const auto& entry : std::filesystem::directory_iterator(dram_)) {
      std::filesystem::remove(entry.path());
    }
  }

  uint64_t dram_bytes_ = 16u << 20, nvme_bytes_ = 64u << 20;
  std::string dram_, disk_;
  std::unique_ptr<meta::MetaStore> meta_;
  std::unique_ptr<iouring::SlotTier> slots_;
  std::unique_ptr<iouring::SegmentStore> segments_;
  std::unique_ptr<ResidentSet> resident_;
};

}  // namespace kvcfs::fs
