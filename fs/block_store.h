// Blocks and chains of all namespaces on this node: what is cached where, who reads and writes it.
//
// Joins the chain index (what is cached), the DRAM tier's slots (passthrough backing files), the
// NVMe segments and the block records of the MetaStore. Publishes from head to tail, evicts from
// tail to head, so that what is cached is always a prefix.
// Threads: any; calls may block on I/O of their own block. Lock order: mutex_, then the locks of
//   MetaStore, SlotTier and ResidentSet; never the other way, and no I/O on data under mutex_.
// Fails: errno values for calls of the kernel; Code for the rest.
// Source: fs/SEMANTICS.md, DESIGN sections 3-5, 8, 10.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/mutex.h"
#include "fs/fs_types.h"
#include "fs/namespace_table.h"
#include "fs/resident_set.h"
#include "fs/reuse_policy.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/chain_index.h"
#include "meta/cluster.h"
#include "meta/lease_table.h"
#include "meta/meta_store.h"

namespace kvcfs::fs {

class CopyHolder;

const char* TierName(Tier tier);

// A cached block, as seen at one moment.
struct BlockView {
  meta::NamespaceId ns = 0;
  BlockKey key;
  BlockKey parent;
  uint32_t ordinal = 0;
  uint64_t length = 0;
  Tier tier = Tier::kNone;
  uint32_t hits = 0;
  uint32_t lease_ms = 0;
  int64_t mtime_nanos = 0;
  int64_t atime_nanos = 0;
  bool leaf = false;
  Ino other_ino = 0;  // where the number that follows from the key is a dropped block's still
  Ino block_ino() const;
  Ino chain_ino() const;
};

struct MatchAnswer {
  uint32_t count = 0;
  uint32_t lease_ms = 0;
  std::vector<BlockView> blocks;
};

struct BlockStoreOptions {
  std::chrono::milliseconds lease{30000};
  std::chrono::milliseconds lease_hold{10000};  // beyond what was promised (cached entries)
  std::chrono::milliseconds writeback_delay{500};
  std::chrono::milliseconds publish_wait{1000};  // for the RELEASE of a writer that has flushed
  std::chrono::milliseconds room_wait{5000};     // for write-back when the tier is full
  uint64_t lease_bytes_max = 0;                  // half of the cache
  uint32_t prefetch_blocks = 4;
  bool resumed = false;                  // the kernel still has our files open
  uint64_t told_blocks_max = 1'000'000;  // of a cluster, that are remembered (about 250 B each)
};

struct BlockStoreParts {
  NamespaceTable* namespaces = nullptr;
  meta::MetaStore* meta = nullptr;
  iouring::SlotTier* slots = nullptr;
  ResidentSet* resident = nullptr;
  iouring::SegmentStore* segments = nullptr;  // null: DRAM only
  BackingOpener* backing = nullptr;
  Notifier* notifier = nullptr;
  const Clock* clock = nullptr;
  // Whose blocks these are; the tiers here are then a cache of them. Null: all blocks are here.
  meta::Cluster* cluster = nullptr;
  // With a cluster whose blocks this host holds, too: beside a mount. What is written here becomes
  // a copy in its slot, and what lies there is read there; the rest of the tiers is still a cache.
  CopyHolder* copies = nullptr;
};

struct BlockStoreStats {
  uint64_t blocks = 0, leaves = 0, index_bytes = 0;
  uint64_t dirty_bytes = 0, leased_bytes = 0, pending = 0, resident_blocks = 0;
  uint64_t pinned_bytes = 0;  // may not be evicted now: dirty, leased
};

// What segment recovery found that the meta store may not know yet.
struct RecoveredEntry {
  iouring::EntryMeta meta;
  iouring::SegmentPlace place;
};

class BlockStore : public SlotOwner {
 public:
  BlockStore(const BlockStoreOptions& options, const BlockStoreParts& parts);
  ~BlockStore() override;

  // The sequence up to which the meta store knows every block entry of the segments.
  static uint64_t AppliedSequence(meta::MetaStore& store);
  // Fills the index from the meta store, what the segments know beyond it, and surviving slots.
  Status Recover(const std::vector<RecoveredEntry>& newer);
  void Start();  // background threads
  void Stop();

  // ---- names
  // kLease: counts as a use and promises to keep it; waits for a writer that has just flushed.
  enum class Use { kPeek, kLease };
  std::optional<BlockView> Find(meta::NamespaceId ns, const BlockKey& key, Use use);
  std::optional<BlockView> FindIno(Ino ino, Use use);  // of a block or chain
  std::optional<BlockView> FindDropped(Ino ino);       // a block that went and is open still
  // The block `ordinal` of the chain that ends in `tip`.
  std::optional<BlockView> InChain(meta::NamespaceId ns, const BlockKey& tip, uint32_t ordinal,
                                   Use use);
  using Visit = std::function<bool(const BlockView&, uint64_t next_cookie)>;
  void ListChain(meta::NamespaceId ns, const BlockKey& tip, uint64_t from_ordinal,
                 const Visit& visit);
  FsStatus ListLeaves(meta::NamespaceId ns, uint64_t cookie, const Visit& visit);
  void ListBlocks(meta::NamespaceId ns, uint64_t cookie, const Visit& visit);
  bool NamespaceIsEmpty(meta::NamespaceId ns);  // no block, and nobody writes one
  uint64_t BlockCount(meta::NamespaceId ns);
  uint64_t LiveBytes();  // of all cached blocks

  enum MatchFlags : uint32_t { kMatchPrefetch = 1, kMatchNoLease = 2 };
  MatchAnswer Match(meta::NamespaceId ns, std::span<const BlockKey> keys, uint32_t flags);

  // ---- writing a block
  struct Created {
    Ino ino = 0;
    OpenReply open;
    struct stat attr {};
  };
  // EEXIST cached; ENOENT no such parent; ENOSPC.
  FsResult<Created> Create(const Caller& caller, const Namespace& space,
                           const std::optional<BlockKey>& parent, const BlockKey& key, int flags);
  FsResult<struct stat> PendingAttr(Ino ino);
  FsResult<OpenReply> PendingOpen(Ino ino, int flags);
  FsStatus PendingTruncate(Ino ino, uint64_t length);
  FsStatus PendingAllocate(Ino ino, int mode, uint64_t offset, uint64_t length);
  FsResult<size_t> PendingRead(Ino ino, uint64_t offset, std::span<std::byte> into);
  FsResult<size_t> PendingWrite(Ino ino, uint64_t offset, std::span<const std::byte> from);
  FsStatus PendingFsync(Ino ino);
  FsStatus PendingFlush(const Caller& caller, Ino ino);  // EFBIG, or what a durable close met
  void PendingRelease(Ino ino, uint64_t handle);

  // ---- reading a block
  FsResult<OpenReply> Open(const Caller& caller, Ino ino, int flags);
  // Classic FUSE: bytes in memory, good until Release of the handle.
  FsResult<std::span<const std::byte>> Mapped(Ino ino, uint64_t handle);
  void Release(Ino ino, uint64_t handle);
  FsStatus Fsync(Ino ino);
  FsResult<uint32_t> Crc(Ino ino);
  void Touch(Ino ino);

  // ---- dropping
  FsStatus Drop(meta::NamespaceId ns, const BlockKey& key, uint64_t* dropped);
  FsStatus UnlinkFromChain(meta::NamespaceId ns, const BlockKey& tip, uint32_t ordinal,
                           const BlockKey& key);
  FsStatus RemoveTip(meta::NamespaceId ns, const BlockKey& tip);
  uint64_t DropNamespace(meta::NamespaceId ns);
  // The cluster has this namespace no longer.
  void ForgetNamespace(meta::NamespaceId ns);
  // A tip or an entry that an unlink in its own chain has just taken along: may still be removed.
  bool IsGhost(meta::NamespaceId ns, const BlockKey& key);
  std::optional<std::pair<meta::NamespaceId, BlockKey>> GhostOf(Ino chain_ino);

  // ---- tiers
  bool TryEvict(iouring::SlotId slot) override;
  void WriteBackSoon(iouring::SlotId slot) override;
  iouring::Fate Judge(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place);
  void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
             const iouring::SegmentPlace& now);
  void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place);
  uint64_t Shed(uint64_t bytes);
  // Everything dirty is on NVMe and in the meta store, durable, when this returns.
  Status WriteBackAll();
  // Up to there the segments' entries that are not of this store are known to whose they are.
  void NoteOthersApplied(uint64_t sequence) KVC_EXCLUDES(mutex_);

  BlockStoreStats Stats();

 private:
  using SlotId = iouring::SlotId;

  // What the cluster said of a block last (block_cluster.cc).
  struct Told {
    uint32_t crc32c = 0;
    meta::PlaceList places;                     // empty: to be asked for
    std::chrono::milliseconds valid_until{0};   // it may be answered without asking again
    std::chrono::milliseconds leased_until{0};  // its promise
  };
  // Of a block that is being written.
  struct SlotFacts {
    meta::BlockFacts facts;
    bool published = false;  // by an fsync before close: with these facts
  };
  using Uses = std::vector<std::pair<meta::BlockId, meta::NodeId>>;

  BlockView ViewOf(meta::BlockRef ref) KVC_REQUIRES(mutex_);
  std::optional<meta::BlockRef> RefOf(Ino ino) KVC_REQUIRES(mutex_);
  // The block was published while one of its key that was dropped is open: it gets another number,
  // so that the kernel never takes bytes or size of one for the other's.
  void GiveOtherIno(uint64_t hash) KVC_REQUIRES(mutex_);
  uint32_t Grant(meta::BlockRef ref) KVC_REQUIRES(mutex_);
  bool IsHeld(meta::BlockRef ref) KVC_REQUIRES(mutex_);  // leased, open, or a child is written
  // For the policy of eviction: a request used it, or published it.
  void NoteReuse(meta::BlockRef ref, bool tip, bool published) KVC_REQUIRES(mutex_);
  // The same of a call that may belong to a request that was counted: then nothing.
  void NoteReuseOnce(meta::BlockRef ref) KVC_REQUIRES(mutex_);
  // Evicts leaves that may go, in the policy's order, until that is enough; so many bytes.
  uint64_t EvictLeaves(const std::function<bool(meta::BlockRef)>& may_go,
                       const std::function<bool(uint64_t freed)>& enough) KVC_REQUIRES(mutex_);
  // Waits, bounded, while a writer of that key has flushed and not yet released.
  void AwaitPublication(meta::NamespaceId ns, const BlockKey& key, MutexLock& lock)
      KVC_REQUIRES(mutex_);
  // The same for every block of a namespace, before it is listed.
  void AwaitPublications(meta::NamespaceId ns, MutexLock& lock) KVC_REQUIRES(mutex_);
  BlockView UseOf(meta::BlockRef ref, Use use) KVC_REQUIRES(mutex_);
  uint32_t NowSeconds() const;

  // Of an unpublished block's inode, or null.
  iouring::SlotRecord* PendingOf(Ino ino) KVC_REQUIRES(mutex_);
  Created CreatedReply(SlotId slot) KVC_REQUIRES(mutex_);
  OpenReply PendingOpenReply(const iouring::SlotRecord& record);
  // The one descriptor of an unpublished block's slot, kept while it is written.
  std::shared_ptr<Fd> PendingFile(SlotId slot) KVC_REQUIRES(mutex_);
  Result<std::shared_ptr<Fd>> WritableFile(Ino ino, uint64_t end);
  // All writers are gone: seal, check, make visible; or discard.
  void PublishSlot(SlotId slot);
  void RetryZombies();
  void ForgetPending(SlotId slot) KVC_REQUIRES(mutex_);
  void Unpin(uint64_t hash) KVC_REQUIRES(mutex_);
  void Discard(SlotId slot, Counter* why) KVC_REQUIRES(mutex_);
  // Evicts coldest leaves of a namespace until one more block fits its quota.
  bool MakeQuotaRoom(const Namespace& space);
  void CloseBackingOf(SlotId slot);

  // Removes one leaf everywhere. The slot goes at once, or with its last reader.
  void RemoveLeaf(meta::BlockRef ref, Counter& why) KVC_REQUIRES(mutex_);
  uint64_t DropTree(meta::BlockRef ref, Counter& why, bool tombstone) KVC_REQUIRES(mutex_);
  uint64_t DropRoots(meta::NamespaceId ns, Counter& why, bool tombstone) KVC_REQUIRES(mutex_);
  void AppendTombstone(meta::NamespaceId ns, const BlockKey& key) KVC_REQUIRES(mutex_);
  void RememberGhosts(const std::vector<meta::BlockRef>& refs) KVC_REQUIRES(mutex_);

  FsResult<OpenReply> OpenResident(SlotId slot) KVC_REQUIRES(mutex_);
  bool MapSlot(SlotId slot, uint64_t length) KVC_REQUIRES(mutex_);
  void FreeBlockSlot(SlotId slot) KVC_REQUIRES(mutex_);
  // Brings a block into a slot. Waits for another fetch of the same block.
  Status FetchBlock(meta::NamespaceId ns, const BlockKey& key);
  void PrefetchBehind(meta::BlockRef ref) KVC_REQUIRES(mutex_);

  // How long the cluster is waited for: less, while nobody of it answers.
  std::chrono::milliseconds Patience(std::chrono::milliseconds limit) const;
  void Heard(Code code);  // of a call of the cluster
  // With a cluster. What asks it lets the lock go meanwhile, and every BlockRef is stale after it.
  std::optional<meta::BlockId> IdOf(meta::NamespaceId ns, const BlockKey& key) const;
  bool IsValid(meta::BlockRef ref) KVC_REQUIRES(mutex_);
  uint32_t PromiseOf(uint64_t hash) KVC_REQUIRES(mutex_);  // in ms, from now on
  // Takes up what the cluster says of a block whose parent is in the index.
  std::optional<meta::BlockRef> Take(meta::NamespaceId ns, const BlockKey& parent,
                                     const meta::FoundBlock& block,
                                     std::chrono::milliseconds leased_until) KVC_REQUIRES(mutex_);
  void TakeChain(meta::NamespaceId ns, std::span<const meta::FoundBlock> chain,
                 std::chrono::milliseconds leased_until) KVC_REQUIRES(mutex_);
  // It is not cached any more, nor what extends it.
  void Forget(meta::NamespaceId ns, const BlockKey& key) KVC_REQUIRES(mutex_);
  void TrimTold() KVC_REQUIRES(mutex_);
  // The block, if the cluster has it: asked where what is known here is too old.
  std::optional<meta::BlockRef> Confirm(meta::NamespaceId ns, const BlockKey& key, MutexLock& lock)
      KVC_REQUIRES(mutex_);
  // How many leading keys the cluster has: of the `count` that are in the index at `refs`, and
  // more.
  size_t ConfirmPrefix(meta::NamespaceId ns, std::span<const BlockKey> keys, bool lease,
                       meta::BlockRef* refs, size_t count, MutexLock& lock) KVC_REQUIRES(mutex_);
  void NoteUse(meta::BlockRef ref, Uses* uses) KVC_REQUIRES(mutex_);
  void TellUses(const Uses& uses);
  // Before a block is written: EEXIST, ENOENT, or its ordinal.
  FsResult<uint32_t> AskToCreate(meta::NamespaceId ns, const std::optional<BlockKey>& parent,
                                 const BlockKey& key, std::optional<SlotFacts>* facts,
                                 MutexLock& lock) KVC_REQUIRES(mutex_);
  // A closed, or flushed, block goes to its holders. kCancelled: it is not to be published.
  // `adopted`: the slot is the copy's of this generation, too, until CopyHolder::Take.
  struct Publication {
    Code code = Code::kCancelled;
    meta::BlockId id;
    uint32_t crc32c = 0;
    std::optional<uint64_t> adopted;
    bool held_here = false;  // by a copy
  };
  Publication PublishToCluster(SlotId slot, const Fd& file, uint64_t length, bool closed);
  Code Publish(SlotId slot, const std::optional<SlotFacts>& known, const BlockKey& parent,
               uint8_t replicas, std::span<const std::byte> bytes, bool closed, Publication* to);
  static void CountUnpublished(const iouring::SlotRecord& record, Code code);
  // The end of a slot whose bytes a copy here has: it is the copy's now, or nobody's.
  void SettlePublished(SlotId slot, const Publication& publication) KVC_REQUIRES(mutex_);
  FsStatus FlushToCluster(Ino ino, uint64_t length, MutexLock& lock) KVC_REQUIRES(mutex_);
  void NotePublished(meta::BlockRef ref, const Publication& publication) KVC_REQUIRES(mutex_);
  // The slot of this host's copy, pinned; as CopyHolder::PinSlot. `from_nvme`: it was not resident.
  Result<SlotId> PinCopy(meta::NamespaceId ns, const BlockKey& key, bool* from_nvme)
      KVC_EXCLUDES(mutex_);
  // The pin is the open file's, or over. EAGAIN: it is open by now, or lies in another slot.
  FsResult<OpenReply> OpenCopy(Ino ino, SlotId slot) KVC_EXCLUDES(mutex_);
  // What has a copy's slot open gets it once more.
  FsResult<OpenReply> OpenAgain(meta::BlockRef ref, Ino ino, SlotId slot) KVC_REQUIRES(mutex_);
  // A copy's slot may be open under several numbers.
  bool IsOpenAs(Ino ino, SlotId slot) KVC_REQUIRES(mutex_);
  void ReleaseCopy(Ino ino, SlotId slot, MutexLock& lock) KVC_REQUIRES(mutex_);
  Status ReadFromPeers(meta::NamespaceId ns, const BlockKey& key, std::span<std::byte> into,
                       uint32_t* crc) KVC_EXCLUDES(mutex_);
  // These bytes are of the version that the cluster has, as far as that was heard.
  bool IsAsTold(meta::NamespaceId ns, const BlockKey& key, std::span<const std::byte> bytes,
                uint32_t* crc) KVC_EXCLUDES(mutex_);
  // A slot with bytes of a peer counts, and goes to NVMe in its turn.
  void KeepFromPeer(SlotId slot) KVC_REQUIRES(mutex_);
  // The copy on NVMe is of no use.
  void DropSegmentCopy(meta::BlockRef ref) KVC_REQUIRES(mutex_);
  uint64_t ShedCopies(uint64_t bytes) KVC_REQUIRES(mutex_);
  FsStatus DropInCluster(meta::NamespaceId ns, const BlockKey& key, MutexLock& lock)
      KVC_REQUIRES(mutex_);
  // From block `ordinal` of the chain on, no other chain has any of it. EBUSY; ENOENT.
  FsStatus IsOwnTail(meta::NamespaceId ns, const BlockKey& tip, uint32_t ordinal, MutexLock& lock)
      KVC_REQUIRES(mutex_);
  FsStatus ListClusterLeaves(meta::NamespaceId ns, uint64_t cookie, const Visit& visit)
      KVC_EXCLUDES(mutex_);
  // Every chain of the namespace, in the cluster: how many, as far as it answers.
  uint64_t DropLeavesOf(meta::NamespaceId ns) KVC_EXCLUDES(mutex_);
  // Any leaf of the namespace in the cluster. Fails where not every shard answers.
  Result<std::optional<BlockKey>> AnyLeaf(meta::NamespaceId ns, uint32_t* shard)
      KVC_EXCLUDES(mutex_);

  // Write-back.
  void QueueWriteBack(SlotId slot, std::chrono::milliseconds delay) KVC_REQUIRES(mutex_);
  // Queues one slot's bytes for NVMe; `done` (may be empty) is told how it went.
  void AppendSlot(SlotId slot, bool durable, iouring::EntryKind kind,
                  const std::function<void(Code)>& done, MutexLock& lock) KVC_REQUIRES(mutex_);
  void OnWritten(SlotId slot, uint32_t generation, const Result<iouring::SegmentPlace>& place,
                 const iouring::EntryMeta& meta);
  Status MakeDurable(SlotId slot, iouring::EntryKind kind, MutexLock& lock) KVC_REQUIRES(mutex_);
  void RunWriteBack();
  void RunPrefetch();
  void RunRecords();
  // Records go to the meta store in batches, in this order.
  void PutRecord(meta::BlockRef ref) KVC_REQUIRES(mutex_);
  void DeleteRecord(meta::NamespaceId ns, const BlockKey& key) KVC_REQUIRES(mutex_);
  void NoteApplied(uint64_t sequence) KVC_REQUIRES(mutex_);
  Status FlushRecords(bool sync);
  // Declared before the lock, so that it ends behind it: what was dropped stays dropped when the
  // process dies. Where the records cannot be written, that is tried again and has been said.
  class RecordsWritten {
   public:
    explicit RecordsWritten(BlockStore* store) : store_(store) {}
    ~RecordsWritten() { (void)store_->FlushRecords(false); }
    RecordsWritten(const RecordsWritten&) = delete;
    RecordsWritten& operator=(const RecordsWritten&) = delete;

   private:
    BlockStore* const store_;
  };

  const BlockStoreOptions options_;
  const BlockStoreParts parts_;
  const uint64_t nvme_block_bytes_max_;  // longer ones live in DRAM only

  Mutex mutex_;
  std::condition_variable_any published_;  // a pending block came or went; a fetch ended
  meta::ChainIndex index_ KVC_GUARDED_BY(mutex_);
  meta::LeaseTable leases_ KVC_GUARDED_BY(mutex_);
  ReusePolicy reuse_ KVC_GUARDED_BY(mutex_);
  uint64_t choices_ KVC_GUARDED_BY(mutex_) = 0;  // of leaves to evict: a number for each
  std::unordered_map<uint64_t, std::vector<SlotId>> pending_ KVC_GUARDED_BY(mutex_);  // by hash62
  std::unordered_map<uint64_t, uint32_t> pins_ KVC_GUARDED_BY(mutex_);  // children being written
  std::unordered_map<uint64_t, int> fetching_ KVC_GUARDED_BY(mutex_);   // by hash62
  std::unordered_map<SlotId, std::pair<void*, size_t>> mappings_ KVC_GUARDED_BY(mutex_);
  std::unordered_map<SlotId, std::shared_ptr<Fd>> pending_files_ KVC_GUARDED_BY(mutex_);
  std::vector<SlotId> zombies_ KVC_GUARDED_BY(mutex_);  // released, but still mapped by someone
  std::unordered_map<uint64_t, Told> told_ KVC_GUARDED_BY(mutex_);  // by hash62
  size_t told_trimmed_ KVC_GUARDED_BY(mutex_) = 0;                  // how many stayed last time
  std::atomic<int> silences_{0};  // calls of the cluster that nobody answered, in a row
  // What the cluster said it has not, until when that may be believed: a lookup before a create.
  std::unordered_map<uint64_t, std::chrono::milliseconds> absent_ KVC_GUARDED_BY(mutex_);
  std::unordered_map<SlotId, SlotFacts> pending_facts_ KVC_GUARDED_BY(mutex_);
  // Slots of copies that are open here, by the number they were opened under.
  struct OpenSlot {
    SlotId slot = 0;
    uint32_t readers = 0;
  };
  std::unordered_map<Ino, OpenSlot> open_copies_ KVC_GUARDED_BY(mutex_);
  struct Ghost {
    meta::NamespaceId ns;
    BlockKey key;
    std::chrono::milliseconds until;
  };
  std::unordered_map<uint64_t, Ghost> ghosts_ KVC_GUARDED_BY(mutex_);  // by hash62
  uint64_t dirty_bytes_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t resident_blocks_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t pending_count_ KVC_GUARDED_BY(mutex_) = 0;
  bool nvme_full_ KVC_GUARDED_BY(mutex_) = false;
  std::unordered_map<meta::NamespaceId, uint64_t> space_bytes_ KVC_GUARDED_BY(mutex_);
  // Sequences of durable blocks that are not published yet: recovery must still look at them.
  std::set<uint64_t> intents_ KVC_GUARDED_BY(mutex_);
  // Dropped, still open: nobody else gets their number until the last release.
  std::unordered_map<Ino, SlotId> doomed_readers_ KVC_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, Ino> other_inos_ KVC_GUARDED_BY(mutex_);  // by hash62, and back
  std::unordered_map<Ino, uint64_t> other_ino_hashes_ KVC_GUARDED_BY(mutex_);
  std::set<SlotId> in_flight_ KVC_GUARDED_BY(mutex_);              // being written back
  std::unordered_set<SlotId> opened_here_ KVC_GUARDED_BY(mutex_);  // for reading, by this worker

  struct Due {
    std::chrono::milliseconds at;
    SlotId slot;
    uint32_t generation;
  };
  std::deque<Due> due_ KVC_GUARDED_BY(mutex_);
  std::condition_variable_any due_changed_;
  std::chrono::milliseconds due_looked_at_ KVC_GUARDED_BY(mutex_){0};  // next; 0: it works
  uint64_t appends_in_flight_ KVC_GUARDED_BY(mutex_) = 0;
  std::deque<std::pair<meta::NamespaceId, BlockKey>> prefetch_ KVC_GUARDED_BY(mutex_);
  std::condition_variable_any prefetch_changed_;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;

  // Records on their way to the meta store, written by one thread in batches.
  Mutex records_write_mutex_;  // taken before records_mutex_: batches are written in order
  meta::MetaBatch unwritten_ KVC_GUARDED_BY(records_write_mutex_);
  bool records_failing_ KVC_GUARDED_BY(records_write_mutex_) = false;
  Mutex records_mutex_;
  std::condition_variable_any records_changed_;
  meta::MetaBatch records_ KVC_GUARDED_BY(records_mutex_);
  uint64_t records_count_ KVC_GUARDED_BY(records_mutex_) = 0;
  uint64_t records_sequence_ KVC_GUARDED_BY(records_mutex_) = 0;
  uint64_t records_sequence_written_ KVC_GUARDED_BY(records_mutex_) = 0;
  bool records_stopping_ KVC_GUARDED_BY(records_mutex_) = false;

  std::vector<std::thread> threads_;
};

}  // namespace kvcfs::fs
