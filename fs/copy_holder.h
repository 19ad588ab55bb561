// The copies of blocks that a server of blocks holds for the cluster: bytes in the DRAM and NVMe
// tiers, their records, and when they may go.
//
// The cluster decides which copies there are (Accept, Mark, Free); this class decides where their
// bytes lie, and asks to be rid of the coldest when room is short (Cluster::WantRelease). New
// copies lie in DRAM and are written back once they are published; those that are read come back
// from NVMe into DRAM. After the process died, all that was published is there; after the machine
// died, what had reached NVMe: the rest is a miss, which replicas cover. In a mount's process the
// tiers are the mount's too: the slot that an application wrote becomes the copy (Adopt), and the
// mount's readers have the copy's slot open (PinSlot). Threads: any; one of its own writes back.
// Lock order: mutex_, then records_mutex_ and the locks of
//   SlotTier, ResidentSet and ExposedSlots; the cluster and SegmentStore are called without a lock,
//   but for MarkDead.
// Memory: about 400 B a copy, and mappings of slots that were read.
// Source: meta/CLUSTER.md; the contract is CopyStore in meta/cluster.h.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "fs/exposed_slots.h"
#include "fs/fs_types.h"
#include "fs/resident_set.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/cluster.h"
#include "meta/copy_records.h"
#include "meta/meta_store.h"

namespace kvcfs::fs {

struct CopyHolderOptions {
  std::chrono::milliseconds writeback_delay{500};
  std::chrono::milliseconds room_wait{1000};  // of Accept and Open, for releases and write-back
  // Of a namespace that wants it, Mark returns when the bytes are on NVMe. Called on the thread of
  // Mark. Empty: of none.
  std::function<bool(const meta::SpaceId&)> wants_durable;
  // Slots, segments and the MetaStore are a mount's as well: what there is not a copy is not
  // touched.
  bool beside_mount = false;
  bool resumed = false;  // the kernel still has slots open
  // Beside a mount: on behalf of the copies, a restart need not look at the segments up to there.
  // No lock is held that others wait for.
  std::function<void(uint64_t sequence)> applied;
};

struct CopyHolderParts {
  meta::MetaStore* meta = nullptr;
  iouring::SlotTier* slots = nullptr;  // all of its slots are this holder's, but beside a mount
  ResidentSet* resident = nullptr;
  iouring::SegmentStore* segments = nullptr;  // null: DRAM only
  const Clock* clock = nullptr;
  BackingOpener* backing = nullptr;  // beside a mount
};

class CopyHolder final : public meta::CopyStore, public SlotOwner, public iouring::EntryOwner {
 public:
  // Takes up what the records say; slots of which they say nothing are given back.
  static Result<std::unique_ptr<CopyHolder>> Open(const CopyHolderOptions& options,
                                                  const CopyHolderParts& parts);
  ~CopyHolder() override;

  // What SegmentStore::Open is to be told: the records are complete up to there.
  static uint64_t AppliedSequence(meta::MetaStore& store);

  // Tells it what is here, and asks it for releases from now on; it outlives this, or Stop. Before
  // it joins.
  void Join(meta::Cluster* cluster);
  void Start();  // after SegmentStore::Start
  // What is dirty and published reaches NVMe, where it has room.
  Status WriteBackAll();
  void Stop();  // the cluster is not called any more

  struct Counts {
    uint64_t copies = 0, bytes = 0, resident = 0, dirty_bytes = 0;
    ExposedSlots::Counts exposed;
  };
  Counts Count();
  uint64_t BytesOf(const meta::SpaceId& space) KVC_EXCLUDES(mutex_);  // of copies here
  // Asks the cluster to take so many bytes of a namespace back, the coldest first, and further ones
  // for those that must stay; waits for the answers, about a second at most. How many went. The
  // last block goes if `luck`, between 0 and 1, is below the part of it that is still wanted.
  uint64_t ReleaseFrom(const meta::SpaceId& space, uint64_t bytes, double luck)
      KVC_EXCLUDES(mutex_);
  uint64_t CountSingle();  // of blocks that want no second copy; looks at each

  // ---- Beside a mount (copy_mount.cc)
  // There is a published copy of these very bytes.
  bool Holds(const meta::BlockFacts& facts) KVC_EXCLUDES(mutex_);
  // A slot that was written, in state kPending, and does not change any more becomes a sealed copy;
  // until Take it stays the mount's all the same.
  Result<uint64_t> Adopt(const meta::BlockFacts& facts, iouring::SlotId slot) KVC_EXCLUDES(mutex_);
  // The slot is the copy's alone from now on. False: the copy has gone, and the slot is the
  // mount's.
  bool Take(const meta::BlockId& id, uint64_t generation) KVC_EXCLUDES(mutex_);
  // The slot of a published copy with this length and CRC (0: any). It stays until UnpinSlot,
  // whatever becomes of the copy; meanwhile `readers`, `backing_id`, `ino`, `namespace_id` and
  // `mtime_nanos` of its record are the mount's. kNotFound: there is no such copy; kBusy:
  // `may_wait` is false and it is not in DRAM; kNoSpace; kCorrupt.
  Result<iouring::SlotId> PinSlot(const meta::BlockId& id, uint64_t length, uint32_t crc32c,
                                  bool may_wait) KVC_EXCLUDES(mutex_);
  void PinAgain(iouring::SlotId slot) KVC_EXCLUDES(mutex_);  // of one that is pinned
  void UnpinSlot(iouring::SlotId slot) KVC_EXCLUDES(mutex_);
  // Of the published copy of a block: kDram, kNvme, or kNone.
  Tier TierOf(const meta::BlockId& id) KVC_EXCLUDES(mutex_);
  // Returns when the block's published copies are on NVMe, as far as they can be.
  Status Persist(const meta::BlockId& id) KVC_EXCLUDES(mutex_);
  // Whether a copy lies there.
  bool Has(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) KVC_EXCLUDES(mutex_);

  // CopyStore
  void Mark(const meta::BlockId& id, uint64_t generation, uint64_t version) override;
  void Free(const meta::BlockId& id, uint64_t generation) override;
  void Keep(const meta::BlockId& id, uint64_t generation) override;
  void Used(const std::vector<meta::BlockId>& ids) override;
  Result<uint64_t> Accept(const meta::BlockFacts& facts, std::span<const std::byte> bytes) override;
  Result<meta::PinnedCopy> Open(const meta::BlockId& id, uint64_t generation,
                                bool may_wait) override;
  meta::CopyCapacity Capacity() override;
  void ExposeBy(rdma::Transport* transport) override;
  meta::SlotTable Slots() override { return exposed_.table(); }

  // SlotOwner
  bool TryEvict(iouring::SlotId slot) override;
  void WriteBackSoon(iouring::SlotId slot) override;

  // EntryOwner
  iouring::Fate Judge(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override;
  void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
             const iouring::SegmentPlace& now) override;
  void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override;
  void Shed(uint64_t bytes) override;
  void PersistMoves() override;

 private:
  using CopyKey = std::pair<meta::BlockId, uint64_t>;  // with the generation
  class Mapping;                                       // of a slot's bytes; may outlive the slot
  struct Copy {
    meta::BlockFacts facts;
    uint64_t version = 0;
    iouring::SlotId slot = 0;
    std::shared_ptr<Mapping>
        mapping;                  // of the slot, since it was read; others have it: it is pinned
    iouring::SegmentPlace place;  // dirty while it has none
    bool checked = true;          // the slot's bytes are right; false after a restart
    bool writing = false;         // to NVMe
    bool hurried = false;         // to the front of due_
    bool fetching = false;        // from NVMe
    bool releasing = false;       // the cluster was asked
    bool lent = false;            // the mount is still publishing the slot
    uint32_t pins = 0;            // of the mount, which has the slot open
    uint32_t old_pins = 0;        // of an earlier process; some may have been closed unheard
    std::list<CopyKey>::iterator age;

    bool IsInUse() const { return pins > 0 || (mapping != nullptr && mapping.use_count() > 1); }
  };
  using Copies = std::map<CopyKey, Copy>;

  CopyHolder(const CopyHolderOptions& options, const CopyHolderParts& parts)
      : options_(options), parts_(parts), exposed_(parts.slots) {}

  Status Recover() KVC_EXCLUDES(mutex_);
  Result<uint64_t> NextGeneration() KVC_EXCLUDES(generation_mutex_);
  // A slot with these bytes that is nobody's yet.
  Result<iouring::SlotId> MakeSlot(std::span<const std::byte> bytes) KVC_EXCLUDES(mutex_);
  void DescribeSlot(iouring::SlotId slot, const meta::BlockFacts& facts, uint64_t generation);

  Copies::iterator AtPlace(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place)
      KVC_REQUIRES(mutex_);
  Copies::iterator Insert(const CopyKey& key, Copy copy) KVC_REQUIRES(mutex_);
  void Erase(Copies::iterator copy) KVC_REQUIRES(mutex_);
  // At once, or with the mount's last pin.
  void FreeSlot(Copy& copy) KVC_REQUIRES(mutex_);
  // Peers may read its slot one-sided from some time on, if it has one and is published.
  void Expose(const CopyKey& key, const Copy& copy) KVC_REQUIRES(mutex_);
  void CloseBackingOf(iouring::SlotId slot) KVC_REQUIRES(mutex_);
  // The mount's applications have it open or mapped.
  bool IsOpen(Copy& copy) KVC_REQUIRES(mutex_);
  static void SettleSlot(iouring::SlotRecord& slot);
  // Takes up a slot that an earlier process has left.
  void RecoverSlot(const meta::CopyRecord& record, Copy& copy) KVC_REQUIRES(mutex_);
  void RecoverOtherSlots() KVC_REQUIRES(mutex_);
  void Touch(Copy& copy) KVC_REQUIRES(mutex_);
  bool Map(Copy& copy) KVC_REQUIRES(mutex_);
  meta::PinnedCopy Pin(Copy& copy) KVC_REQUIRES(mutex_);
  Result<meta::PinnedCopy> OpenOrFetch(const CopyKey& key, bool may_wait) KVC_EXCLUDES(mutex_);
  // The bytes are in the copy's slot when this returns null; else in that memory, there was no
  // room.
  Result<std::shared_ptr<Mapping>> BringIn(const CopyKey& key, bool may_wait, MutexLock& lock)
      KVC_REQUIRES(mutex_);
  // Brings the bytes into a slot, or where there is none into memory of its own: then that is
  // returned. The copy may be gone when this returns.
  Result<std::shared_ptr<Mapping>> Fetch(const CopyKey& key, MutexLock& lock) KVC_REQUIRES(mutex_);
  // Whether its release may be asked for, so that at most so many bytes are asked for at a time.
  bool MayAskFor(const Copy& copy, uint64_t bytes) const KVC_REQUIRES(mutex_);
  void BeginRelease(Copy& copy) KVC_REQUIRES(mutex_);
  void EndRelease(Copy& copy) KVC_REQUIRES(mutex_);
  // Without a lock.
  void AskRelease(const std::vector<CopyKey>& keys) KVC_EXCLUDES(mutex_);
  // Of a namespace, so many bytes of the coldest that may be asked for and were not yet.
  std::vector<CopyKey> ColdestOf(const meta::SpaceId& space, double bytes, double luck,
                                 const std::set<CopyKey>& asked) KVC_REQUIRES(mutex_);
  void SayLost(const CopyKey& key) KVC_EXCLUDES(mutex_);

  void QueueWriteBack(const CopyKey& key, std::chrono::milliseconds delay) KVC_REQUIRES(mutex_);
  bool CanBeWritten(const Copy& copy) const KVC_REQUIRES(mutex_);
  void RunWriteBack() KVC_EXCLUDES(mutex_);
  void WriteBack(const CopyKey& key, MutexLock& lock) KVC_REQUIRES(mutex_);
  void OnWritten(const CopyKey& key, const Result<iouring::SegmentPlace>& place,
                 const iouring::EntryMeta& meta) KVC_EXCLUDES(mutex_);
  Status MakeDurable(const CopyKey& key) KVC_EXCLUDES(mutex_);

  void PutRecord(const CopyKey& key, const Copy& copy) KVC_EXCLUDES(records_mutex_);
  void DeleteRecord(const CopyKey& key) KVC_EXCLUDES(records_mutex_);
  Status FlushRecords(bool sync) KVC_EXCLUDES(records_mutex_, mutex_);

  const CopyHolderOptions options_;
  const CopyHolderParts parts_;
  uint64_t nvme_bytes_max_ = 0;  // of one copy
  ExposedSlots exposed_;

  Mutex mutex_;
  std::condition_variable changed_;      // something was fetched, or written
  std::condition_variable due_changed_;  // for the thread that writes back
  Copies copies_ KVC_GUARDED_BY(mutex_);
  std::list<CopyKey> ages_ KVC_GUARDED_BY(mutex_);  // coldest first
  std::unordered_map<iouring::SlotId, CopyKey> slots_ KVC_GUARDED_BY(mutex_);
  // Slots of copies that are gone, until their last pin.
  std::unordered_map<iouring::SlotId, uint32_t> doomed_ KVC_GUARDED_BY(mutex_);
  uint64_t used_bytes_ KVC_GUARDED_BY(mutex_) = 0;
  std::map<meta::SpaceId, uint64_t> space_bytes_ KVC_GUARDED_BY(mutex_);
  uint64_t dirty_bytes_ KVC_GUARDED_BY(mutex_) = 0;  // published and without a place
  uint64_t releasing_bytes_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t mapped_slots_ KVC_GUARDED_BY(mutex_) = 0;
  meta::Cluster* cluster_ KVC_GUARDED_BY(mutex_) = nullptr;
  struct Due {
    std::chrono::milliseconds at;
    CopyKey key;
  };
  std::deque<Due> due_ KVC_GUARDED_BY(mutex_);
  uint64_t writes_in_flight_ KVC_GUARDED_BY(mutex_) = 0;
  bool nvme_full_ KVC_GUARDED_BY(mutex_) = false;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::thread write_back_;

  Mutex generation_mutex_;
  uint64_t next_generation_ KVC_GUARDED_BY(generation_mutex_) = 0;
  uint64_t generation_limit_ KVC_GUARDED_BY(generation_mutex_) = 0;  // reserved up to here

  Mutex records_write_mutex_;  // held over taking the records and writing them: so in order
  Mutex records_mutex_;
  meta::MetaBatch records_ KVC_GUARDED_BY(records_mutex_);
  uint64_t records_sequence_ KVC_GUARDED_BY(records_mutex_) = 0;
  meta::MetaBatch unwritten_ KVC_GUARDED_BY(records_write_mutex_);
  bool records_failing_ KVC_GUARDED_BY(records_write_mutex_) = false;
};

}  // namespace kvcfs::fs
