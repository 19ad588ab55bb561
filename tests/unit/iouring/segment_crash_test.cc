// The machine dies between any two operations and loses an arbitrary part of what was not flushed.
// What was durable comes back, what was removed durably does not, and nothing that comes is wrong.
#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

constexpr unsigned kNames = 60;
constexpr unsigned kSteps = 250;

// One change of one name, in the order in which they were queued.
struct Change {
  EntryMeta meta;
  bool durable_done = false;
};

class CrashTest : public StoreTest {
 protected:
  struct Name {
    std::vector<Change> changes;
    bool in_flight = false;
    bool shed = false;  // evicted without a tombstone: it may come back
  };

  CrashTest() {
    Quiet();
    options_.segment_bytes = 256 * 1024;
    options_.capacity_bytes = 10 * options_.segment_bytes;
    options_.staging_bytes = 1 << 20;
  }

  // Blocks have even numbers, files odd ones.
  static EntryMeta MetaOf(unsigned number, uint64_t version, uint64_t length) {
    return number % 2 == 0 ? BlockMeta(number, length) : FileMeta(number, version, length);
  }

  void Change(unsigned number, const EntryMeta& meta, bool durable) {
    size_t index = 0;
    {
      MutexLock lock(mutex_);
      Name& name = names_[number];
      name.in_flight = true;
      index = name.changes.size();
      name.changes.push_back({meta, false});
      ++queued_;
    }
    AppendRequest request;
    request.meta = meta;
    request.durable = durable;
    request.fill = [meta](std::span<std::byte> into) {
      FillContent(meta, into);
      return true;
    };
    request.done = [this, number, index, durable](const Result<SegmentPlace>& place,
                                                  const EntryMeta& done) {
      if (place.ok()) {
        if (!IsTombstone(done.kind)) books_.Put(done, *place);
      }
      MutexLock lock(mutex_);
      Name& name = names_[number];
      if (place.ok() && durable) name.changes[index].durable_done = true;
      // A failed change may still have reached the disk: from here on anything newer may be found.
      name.in_flight = false;
      ++done_;
      changed_.notify_all();
    };
    if (!store_->Append(std::move(request)).ok()) {
      MutexLock lock(mutex_);
      ++done_;
      names_[number].in_flight = false;
    }
  }

  void Work(std::mt19937_64& random) {
    for (unsigned step = 0; step < kSteps && !disk_->dead(); ++step) {
      const unsigned number = static_cast<unsigned>(random() % kNames);
      bool busy = false, present = false;
      uint64_t version = 0;
      {
        MutexLock lock(mutex_);
        const Name& name = names_[number];
        busy = name.in_flight;
        version = name.changes.size() + 1;
        present = !name.changes.empty() && !IsTombstone(name.changes.back().meta.kind);
      }
      if (busy) continue;
      const bool durable = random() % 3 == 0;
      const uint64_t lengths[] = {random() % 200, random() % 5000, random() % 70'000};
      EntryMeta meta = MetaOf(number, version, lengths[random() % 3]);
      if (present && random() % 4 == 0) {
        meta.kind = number % 2 == 0 ? EntryKind::kBlockTombstone : EntryKind::kFileTombstone;
        meta.length = 0;
        // First the tombstone: without places that live in it a segment may be erased.
        Change(number, meta, durable);
        books_.Drop(meta);
      } else if (present && number % 2 == 0) {
        continue;  // a block never changes
      } else {
        Change(number, meta, durable);
      }
      if (random() % 8 == 0) WaitForAll();
      if (random() % 40 == 0) (void)store_->Flush(random() % 2 == 0);
    }
    WaitForAll();
  }

  // For messages: what was done to a name, and what is found of it.
  std::string History(unsigned number) {
    std::string text;
    for (const struct Change& one : names_[number].changes) {
      text += fmt::format("change {} of version {}{}\n", static_cast<int>(one.meta.kind),
                          one.meta.version, one.durable_done ? ", durable" : "");
    }
    const EntryMeta meta = MetaOf(number, 0, 0);
    for (const Located& one : visited_) {
      if (one.meta.ino != meta.ino || one.meta.key != meta.key) continue;
      text += fmt::format("found {} of version {}, sequence {}, origin {}, in {}\n",
                          static_cast<int>(one.meta.kind), one.meta.version, one.meta.sequence,
                          one.meta.origin, one.place.segment);
    }
    return text;
  }

  void Verify() {
    Books rebuilt;
    for (const Located& one : visited_) rebuilt.Replay(one.meta, one.place);
    for (const Located& one : visited_) {
      if (!IsTombstone(one.meta.kind)) ReadBack(one.meta, one.place);  // exact, or an error
    }
    for (unsigned number = 0; number < kNames; ++number) {
      const Name& name = names_[number];
      size_t last_durable = name.changes.size();
      for (size_t i = 0; i < name.changes.size(); ++i) {
        if (name.changes[i].durable_done) last_durable = i;
      }
      if (last_durable == name.changes.size() || name.shed) continue;
      // The state after the last durable change, or after any later one.
      bool may_be_absent = false, may_be_present = false;
      for (size_t i = last_durable; i < name.changes.size(); ++i) {
        (IsTombstone(name.changes[i].meta.kind) ? may_be_absent : may_be_present) = true;
      }
      const auto found = rebuilt.Find(MetaOf(number, 0, 0));
      if (!found) {
        EXPECT_TRUE(may_be_absent) << "lost " << number;
        continue;
      }
      EXPECT_TRUE(may_be_present) << "came back " << number;
      // Who is removed by a tombstone that waits for room may come back, and not as the last
      // version.
      const bool removing = std::any_of(
          name.changes.begin() + static_cast<ptrdiff_t>(last_durable) + 1, name.changes.end(),
          [](const struct Change& later) { return IsTombstone(later.meta.kind); });
      if (number % 2 == 1 && !removing) {
        EXPECT_GT(found->meta.version, last_durable) << "old version\n" << History(number);
      }
      const struct Change& durable = name.changes[last_durable];
      if (found->meta.version == durable.meta.version && !may_be_absent) {
        EXPECT_EQ(ReadBack(found->meta, found->place), Code::kOk) << "damaged " << number;
      }
    }
    const SegmentScan scan = Scan();
    for (const SegmentProblem& problem : scan.problems) {
      ADD_FAILURE() << problem.file << "@" << problem.offset << ": " << problem.text;
    }
  }

  // Eviction leaves no tombstones, and takes only blocks.
  class Evicting final : public EntryOwner {
   public:
    explicit Evicting(CrashTest& test) : test_(test) {}
    Fate Judge(const EntryMeta& meta, const SegmentPlace& place) override {
      return test_.books_.Judge(meta, place);
    }
    void Moved(const EntryMeta& meta, const SegmentPlace& before,
               const SegmentPlace& now) override {
      test_.books_.Moved(meta, before, now);
    }
    void Lost(const EntryMeta& meta, const SegmentPlace& place) override {
      test_.books_.Lost(meta, place);
    }
    void Shed(uint64_t bytes) override {
      for (const Located& one : test_.books_.All()) {
        if (one.meta.ino != 0) continue;
        {
          MutexLock lock(test_.mutex_);
          for (unsigned number = 0; number < kNames; number += 2) {
            if (one.meta.key == KeyOf(number)) test_.names_[number].shed = true;
          }
        }
        test_.books_.Drop(one.meta);
        if (one.meta.length >= bytes) return;
        bytes -= one.meta.length;
      }
    }

   private:
    CrashTest& test_;
  };

  void Live() {
    books_.SetStore(store_.get());
    for (const Located& one : books_.All()) store_->MarkLive(one.place, one.meta.length);
    store_->Start(&owner_);
  }

  Books books_;
  Evicting owner_{*this};
  std::array<Name, kNames> names_;
};

TEST_F(CrashTest, WhatWasDurableComesBack) {
  std::mt19937_64 random(Seed());
  uint64_t operations = 0;
  const auto begin = std::chrono::steady_clock::now();
  unsigned rounds = 0;
  for (; rounds < 150; ++rounds) {
    // A few rounds without a death say how many operations there are to die at.
    disk_ = std::make_shared<MemoryDisk>(random());
    names_ = {};
    queued_ = done_ = 0;
    if (operations > 100) disk_->DieAt(random() % operations);
    uint64_t lives = 1 + random() % 3;
    while (lives-- != 0) {
      books_.Clear();  // for each life: only what the segments say
      visited_.clear();
      if (!TryOpen().ok()) break;
      for (const Located& one : visited_) books_.Replay(one.meta, one.place);
      Live();
      Work(random);
      operations = std::max(operations, disk_->operations());
      Close();
      books_.SetStore(nullptr);
    }
    disk_->Crash();
    Open();
    ASSERT_FALSE(HasFatalFailure());
    Verify();
    Close();
    ASSERT_FALSE(HasFailure()) << "round " << rounds;
    // Time only decides how many rounds there are, never the verdict.
    if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(4)) break;
  }
  std::printf("%u rounds, up to %llu operations\n", rounds,
              static_cast<unsigned long long>(operations));
  EXPECT_GT(operations, 100u);
}

}  // namespace
}  // namespace kvcfs::iouring
