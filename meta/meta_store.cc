#include "meta/meta_store.h"

#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/snapshot.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include "base/log.h"
#include "base/mutex.h"
#include "meta/meta_files.h"

namespace kvcfs::meta {
namespace {

// Room for a manifest, a log of some thousand deletions and a table: what it takes to open on a
// full disk and to delete things until it is no longer full.
constexpr uint64_t kReserveBytes = 8u << 20;
// Tables beyond this are not verified as a whole at open (1 GiB: about a second; 8 million blocks).
constexpr uint64_t kVerifyBytesMax = 1u << 30;
// A store that met damage while it was open is marked with this file and verified at the next open.
constexpr const char* kSuspectFile = "/suspect";
// A salvaged copy that is whole; see Opener::Salvage.
constexpr const char* kCompleteFile = "/complete";

rocksdb::Slice ToSlice(std::string_view text) {
  return {text.data(), text.size()};
}

// RocksDB says by return values what goes wrong, but damaged sizes can make its containers throw.
template <typename F>
rocksdb::Status Guarded(F&& call) {
  try {
    return call();
  } catch (const std::exception& thrown) {
    return rocksdb::Status::Corruption(std::string("thrown: ") + thrown.what());
  }
}

bool Mentions(const rocksdb::Status& status, std::string_view words) {
  return status.ToString().find(words) != std::string::npos;
}

Code CodeOf(const rocksdb::Status& status) {
  if (status.ok()) return Code::kOk;
  if (status.IsNoSpace() || Mentions(status, "No space left") || Mentions(status, "Disk quota"))
    return Code::kNoSpace;
  if (Mentions(status, "Permission denied") || Mentions(status, "not permitted") ||
      Mentions(status, "Read-only file system"))
    return Code::kDenied;
  if (status.IsNotFound()) return Code::kNotFound;
  if (status.IsCorruption()) return Code::kCorrupt;
  if (status.IsNotSupported()) return Code::kUnsupported;
  if (status.IsBusy() || status.IsTryAgain()) return Code::kBusy;
  if (status.IsShutdownInProgress()) return Code::kCancelled;
  return Code::kIo;
}

Error ErrorOf(const rocksdb::Status& status, std::string_view what) {
  return Error{CodeOf(status), std::string(what) + ": " + status.ToString()};
}

// RocksDB's own log: nothing on disk; what it warns of goes to ours at debug level, and what
// recovery had to drop is remembered.
class RocksLog final : public rocksdb::Logger {
 public:
  RocksLog() : Logger(rocksdb::WARN_LEVEL) {}
  using Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char text[512];
    std::vsnprintf(text, sizeof text, format, arguments);
    if (std::string_view(text).find("dropping") != std::string_view::npos) ++dropped_;
    KVC_LOG(Debug, "rocksdb", "text={}", LogValue(text));
  }
  int dropped() const { return dropped_.load(); }

 private:
  std::atomic<int> dropped_{0};
};

// Errors in RocksDB's threads. Lack of room is retried by our Write, at once when there is room
// again, instead of by RocksDB's own poll. Damage found by a compaction would end all writing:
// instead compaction ends, and the next open salvages.
class ErrorListener final : public rocksdb::EventListener {
 public:
  explicit ErrorListener(std::string directory) : directory_(std::move(directory)) {}

  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    KVC_LOG(Warn, "record store background error", "reason={} text={}", static_cast<int>(reason),
            LogValue(error->ToString()));
    if (reason != rocksdb::BackgroundErrorReason::kCompaction || !error->IsCorruption()) return;
    std::ofstream(directory_ + kSuspectFile) << error->ToString() << "\n";
    damaged_ = true;
    *error = rocksdb::Status::OK();
  }
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }
  // True once: compaction is to be switched off.
  bool TakeDamaged() {
    return damaged_.load(std::memory_order_relaxed) && damaged_.exchange(false);
  }

 private:
  const std::string directory_;
  std::atomic<bool> damaged_{false};
};

rocksdb::Options MakeOptions(const MetaStoreOptions& options) {
  rocksdb::Options made;
  made.create_if_missing = true;
  made.paranoid_checks = true;
  // A log is believed up to its first bad record: what is recovered is a state that once was.
  made.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  made.avoid_flush_during_recovery = true;
  made.write_buffer_size = options.write_buffer_bytes;
  made.max_write_buffer_number = 3;
  made.max_total_wal_size = 4 * options.write_buffer_bytes;
  made.max_background_jobs = 2;
  made.max_open_files = 512;  // of a process limit of some thousands, which slots need
  made.max_manifest_file_size = 16u << 20;
  made.allow_fallocate = false;          // preallocation would be a lie on a full disk
  made.disable_auto_compactions = true;  // until all tables are verified
  made.skip_stats_update_on_db_open = true;
  made.stats_dump_period_sec = 0;
  made.stats_persist_period_sec = 0;
  made.bytes_per_sync = 1u << 20;
  made.compression = rocksdb::kNoCompression;  // keys and places do not compress
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(options.cache_bytes, 2);
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  made.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return made;
}

// Reads on behind damage: where a block cannot be read, looks for the next key that can, with steps
// that double and are then halved, and remembers that something was left out.
class Cursor final : public MetaCursor {
 public:
  Cursor(rocksdb::DB* db, std::string_view from) : db_(db), snapshot_(db) {
    how_.snapshot = snapshot_.snapshot();
    it_.reset(db_->NewIterator(how_));
    last_.assign(from);
    Checked([&] { it_->Seek(ToSlice(last_)); });
  }

  bool Valid() const override { return it_->Valid(); }
  std::string_view key() const override { return it_->key().ToStringView(); }
  std::string_view value() const override { return it_->value().ToStringView(); }
  void Next() override {
    last_.assign(key());
    Checked([&] { it_->Next(); });
  }
  Status status() const override {
    if (!damage_.ok()) return ErrorOf(damage_, "read records");
    return {};
  }

 private:
  // Keys as numbers of this many bytes, to step by: the longest that are equal up to the last byte
  // (two names of one directory) still differ in it.
  static constexpr size_t kStepBytes = 320;

  template <typename F>
  void Checked(F&& move) {
    const rocksdb::Status status = Guarded([&] {
      move();
      return it_->status();
    });
    if (status.ok()) return;
    if (damage_.ok()) damage_ = status;
    const Code code = CodeOf(status);
    if (code == Code::kCorrupt || code == Code::kIo) SkipDamage();
  }

  // With an iterator of its own: one that met damage may call itself at the end from then on.
  bool CanSeek(const std::string& key) {
    return Guarded([&] {
             it_.reset(db_->NewIterator(how_));
             it_->Seek(key);
             return it_->status();
           })
        .ok();
  }

  // last_ + 2^bit, as a big-endian number; all ones when that does not fit.
  std::string Stepped(const std::string& from, size_t bit) const {
    std::string to = from;
    to.resize(kStepBytes, '\0');
    size_t at = kStepBytes - 1 - bit / 8;
    unsigned carry = 1u << (bit % 8);
    for (;; --at) {
      const unsigned sum = static_cast<uint8_t>(to[at]) + carry;
      to[at] = static_cast<char>(sum & 0xff);
      carry = sum >> 8;
      if (carry == 0) return to;
      if (at == 0) return std::string(kStepBytes, '\xff');
    }
  }

  void SkipDamage() {
    std::string bad = last_;
    size_t bit = 0;
    while (!CanSeek(Stepped(bad, bit))) {
      if (++bit == 8 * kStepBytes)
        return;  // nothing can be read behind it; the iterator is invalid
    }
    std::string good = Stepped(bad, bit);
    while (bit-- > 0) {
      const std::string middle = Stepped(bad, bit);
      if (CanSeek(middle)) {
        good = middle;
      } else {
        bad = middle;
      }
    }
    if (!CanSeek(good)) damage_ = it_->status();
  }

  rocksdb::DB* const db_;
  rocksdb::ManagedSnapshot snapshot_;
  rocksdb::ReadOptions how_;
  std::unique_ptr<rocksdb::Iterator> it_;
  std::string last_;
  rocksdb::Status damage_;
};

struct BatchContent {
  rocksdb::WriteBatch records;
};

}  // namespace

struct MetaBatch::Rep {
  BatchContent content;
};

MetaBatch::MetaBatch() : rep_(std::make_unique<Rep>()) {}
MetaBatch::~MetaBatch() = default;
MetaBatch::MetaBatch(MetaBatch&&) noexcept = default;
MetaBatch& MetaBatch::operator=(MetaBatch&&) noexcept = default;

// A batch in memory fails only where it would pass 4 GiB.
void MetaBatch::Put(std::string_view key, std::string_view value) {
  KVC_CHECK(rep_->content.records.Put(ToSlice(key), ToSlice(value)).ok());
}
void MetaBatch::Delete(std::string_view key) {
  KVC_CHECK(rep_->content.records.Delete(ToSlice(key)).ok());
}
void MetaBatch::DeleteRange(std::string_view begin, std::string_view end) {
  KVC_CHECK(rep_->content.records.DeleteRange(ToSlice(begin), ToSlice(end)).ok());
}
bool MetaBatch::empty() const {
  return rep_->content.records.Count() == 0;
}
void MetaBatch::Clear() {
  rep_->content.records.Clear();
}

void* MetaStore::RepOf(MetaBatch& batch) {
  return &batch.rep_->content;
}

namespace {

// What Open has in hand: the store and those it calls back, which outlive it.
struct OpenedDb {
  std::shared_ptr<RocksLog> log;
  std::shared_ptr<ErrorListener> listener;
  std::unique_ptr<rocksdb::DB> db;
};

class RocksMetaStore final : public MetaStore {
 public:
  RocksMetaStore(OpenedDb opened, const MetaStoreOptions& options)
      : opened_(std::move(opened)),
        db_(*opened_.db),
        read_only_(options.read_only),
        reserve_(options.directory, kReserveBytes) {
    MutexLock lock(mutex_);
    if (!read_only_) reserve_.MakeAgain();
  }

  ~RocksMetaStore() override {
    if (read_only_) return;
    const Status synced = Sync();
    if (!synced.ok()) {
      KVC_LOG(Warn, "record store closed unsynced", "text={}", LogValue(synced.error().text));
    }
    opened_.db->Close().PermitUncheckedError();
  }

  Status Write(MetaBatch& batch, bool sync) override {
    auto& records = static_cast<BatchContent*>(RepOf(batch))->records;
    if (read_only_) return Error{Code::kUnsupported, "record store was opened to be read"};
    if (records.Count() == 0) return sync ? Sync() : Status();
    rocksdb::WriteOptions how;
    how.sync = sync;
    rocksdb::Status status = Guarded([&] { return db_.Write(how, &records); });
    if (!status.ok() && Recover(status, records.HasDelete() || records.HasDeleteRange()))
      status = Guarded([&] { return db_.Write(how, &records); });
    if (!status.ok()) return ErrorOf(status, "write records");
    records.Clear();
    if (opened_.listener->TakeDamaged()) StopCompaction();
    return {};
  }

  Result<std::optional<std::string>> Get(std::string_view key) override {
    std::string value;
    const rocksdb::Status status =
        Guarded([&] { return db_.Get(rocksdb::ReadOptions(), ToSlice(key), &value); });
    if (status.IsNotFound()) return std::optional<std::string>();
    if (!status.ok()) return ErrorOf(status, "read record");
    return std::optional<std::string>(std::move(value));
  }

  std::unique_ptr<MetaCursor> Seek(std::string_view from) override {
    return std::make_unique<Cursor>(&db_, from);
  }

  Status Sync() override {
    if (read_only_) return {};
    const rocksdb::Status status = Guarded([&] { return db_.FlushWAL(true); });
    if (!status.ok()) return ErrorOf(status, "sync records");
    return {};
  }

  uint64_t ApproximateBytes() const override {
    uint64_t bytes = 0, part = 0;
    for (const char* name : {"rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables"}) {
      if (db_.GetIntProperty(name, &part)) bytes += part;
    }
    return bytes;
  }

 private:
  // After an error RocksDB takes no writes until it is told to resume. True: try again.
  bool Recover(const rocksdb::Status& status, bool deletes) {
    using std::chrono::steady_clock;
    const Code code = CodeOf(status);
    if (code != Code::kNoSpace && code != Code::kIo) return false;
    MutexLock lock(mutex_);
    // What deletes may use the reserve: without it a full disk could never be emptied.
    const bool spend = code == Code::kNoSpace && deletes && reserve_.held();
    if (spend) {
      KVC_LOG(Warn, "disk full, record store gives up its reserve to delete");
      reserve_.GiveUp();
    }
    const auto now = steady_clock::now();
    // Each try may write a table: not more often than this, whatever the number of writers.
    if (!spend && now < resume_after_) return false;
    resume_after_ = now + std::chrono::milliseconds(100);
    if (!Guarded([&] { return db_.Resume(); }).ok()) return false;
    if (!deletes) reserve_.MakeAgain();
    return true;
  }

  void StopCompaction() {
    const rocksdb::Status status = Guarded([&] {
      return db_.SetOptions({{"disable_auto_compactions", "true"}});
    });
    KVC_LOG(Error, "record store is damaged: compaction stopped, restart to salvage it", "ok={}",
            status.ok());
  }

  const OpenedDb opened_;
  rocksdb::DB& db_;
  const bool read_only_;
  Mutex mutex_;
  RoomReserve reserve_ KVC_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point resume_after_ KVC_GUARDED_BY(mutex_);
};

// The steps from a directory in any state to an open store.
class Opener {
 public:
  Opener(const MetaStoreOptions& options, MetaOpenReport& report)
      : options_(options), report_(report) {}

  Result<std::unique_ptr<MetaStore>> Run() {
    if (options_.read_only) return OpenReadOnly();
    TakeCompleteSalvage();
    KVC_TRY(MakeDirectories(options_.directory));
    const MetaDirectoryLook look = LookAtMetaDirectory(options_.directory);
    report_.created = !look.has_current && !look.has_data;
    OpenedDb opened;
    rocksdb::Status status;
    // Without CURRENT, RocksDB would begin anew and delete all tables.
    if (look.has_data && !look.has_current) {
      status = rocksdb::Status::Corruption("CURRENT is gone");
    } else if (look.manifest_torn) {
      status = rocksdb::Status::Corruption("MANIFEST ends within a record");
    } else {
      status = OpenMakingRoom(&opened);
    }
    if (IsDamage(status)) status = Repair(status, &opened);
    if (IsDamage(status)) {
      KVC_TRY_ASSIGN(const std::string aside, MoveAside(options_.directory));
      Say("beyond repair (" + status.ToString() + "), moved to " + aside + ", begun anew");
      report_.recreated = true;
      KVC_TRY(MakeDirectories(options_.directory));
      status = OpenMakingRoom(&opened);
    }
    if (!status.ok()) return OpenError(status);
    if (opened.log->dropped() > 0) {
      report_.repaired = true;
      Say("a damaged log: what came after the damage is lost");
    }
    KVC_TRY(VerifyAndSalvage(&opened));
    return std::unique_ptr<MetaStore>(new RocksMetaStore(std::move(opened), options_));
  }

 private:
  void Say(const std::string& text) {
    if (!report_.text.empty()) report_.text += "; ";
    report_.text += text;
  }

  static bool IsLocked(const rocksdb::Status& status) {
    return status.IsIOError() && (Mentions(status, "lock hold by current process") ||
                                  (Mentions(status, "While lock file") &&
                                   Mentions(status, "Resource temporarily unavailable")));
  }

  // Not a matter of room, rights, memory or of another process: then it is the bytes.
  static bool IsDamage(const rocksdb::Status& status) {
    if (status.ok() || IsLocked(status) || status.IsMemoryLimit()) return false;
    const Code code = CodeOf(status);
    if (code == Code::kNoSpace || code == Code::kDenied) return false;
    return !Mentions(status, "Too many open files") && !Mentions(status, "Cannot allocate memory");
  }

  Error OpenError(const rocksdb::Status& status) const {
    if (IsLocked(status)) {
      return Error{Code::kBusy,
                   "record store " + options_.directory + " is in use by another process"};
    }
    return ErrorOf(status, "open record store " + options_.directory);
  }

  rocksdb::Options Prepare(OpenedDb* opened) const {
    rocksdb::Options made = MakeOptions(options_);
    opened->log = std::make_shared<RocksLog>();
    opened->listener = std::make_shared<ErrorListener>(options_.directory);
    made.info_log = opened->log;
    made.listeners = {opened->listener};
    return made;
  }

  rocksdb::Status OpenOnce(OpenedDb* opened, uint64_t write_buffer_bytes) const {
    rocksdb::Options made = Prepare(opened);
    made.write_buffer_size = write_buffer_bytes;
    return Guarded([&] {
      rocksdb::DB* db = nullptr;
      rocksdb::Status status = rocksdb::DB::Open(made, options_.directory, &db);
      opened->db.reset(db);
      return status;
    });
  }

  // On a full disk: gives up the reserve, and lets recovery keep its logs in memory instead of
  // writing tables.
  rocksdb::Status OpenMakingRoom(OpenedDb* opened) const {
    rocksdb::Status status = OpenOnce(opened, options_.write_buffer_bytes);
    if (CodeOf(status) != Code::kNoSpace) return status;
    RoomReserve(options_.directory, kReserveBytes).GiveUp();
    status = OpenOnce(opened, 16 * options_.write_buffer_bytes);
    if (!status.ok()) return status;
    return status;
  }

  rocksdb::Status Repair(const rocksdb::Status& damage, OpenedDb* opened) {
    opened->db.reset();
    const auto repair = [&] {
      OpenedDb unused;
      const rocksdb::Options made = Prepare(&unused);
      return Guarded([&] { return rocksdb::RepairDB(options_.directory, made); });
    };
    rocksdb::Status status = repair();
    if (CodeOf(status) == Code::kNoSpace) {
      RoomReserve(options_.directory, kReserveBytes).GiveUp();
      status = repair();
    }
    if (status.ok()) status = OpenMakingRoom(opened);
    if (status.ok()) {
      report_.repaired = true;
      Say("repaired after: " + damage.ToString());
    }
    return status;
  }

  // Reads every table once. Where one is damaged, all that can be read goes into a new store beside
  // this one, so that no later compaction stumbles over it.
  Status VerifyAndSalvage(OpenedDb* opened) {
    uint64_t bytes = 0;
    std::error_code error;
    const std::string suspect = options_.directory + kSuspectFile;
    const bool suspected = std::filesystem::exists(suspect, error);
    opened->db->GetIntProperty("rocksdb.total-sst-files-size", &bytes);
    rocksdb::Status status;
    if (suspected || bytes <= kVerifyBytesMax)
      status = Guarded([&] { return opened->db->VerifyChecksum(); });
    if (!status.ok()) {
      status = Salvage(status, opened);
      if (opened->db == nullptr) return OpenError(status);
      if (!status.ok()) {
        // No room for a copy: go on with what is readable, try again at the next open.
        Say("damaged and not salvaged: " + status.ToString());
        return {};
      }
    }
    if (suspected) std::filesystem::remove(suspect, error);
    const std::string usual = std::to_string(options_.write_buffer_bytes);
    status = Guarded([&] {
      return opened->db->SetOptions(
          {{"disable_auto_compactions", "false"}, {"write_buffer_size", usual}});
    });
    if (!status.ok()) Say("compaction stays off: " + status.ToString());
    return {};
  }

  rocksdb::Status Salvage(const rocksdb::Status& damage, OpenedDb* opened) {
    const std::string target = options_.directory + ".salvage";
    std::error_code error;
    std::filesystem::remove_all(target, error);
    uint64_t kept = 0;
    rocksdb::Status status = Guarded([&] { return CopyReadable(*opened->db, target, &kept); });
    if (!status.ok()) {
      std::filesystem::remove_all(target, error);
      return status;
    }
    std::ofstream(target + kCompleteFile) << "ok\n";
    opened->db.reset();
    const Result<std::string> aside = MoveAside(options_.directory);
    if (!aside.ok()) return rocksdb::Status::IOError(aside.error().text);
    TakeCompleteSalvage();
    report_.repaired = true;
    Say(fmt::format("salvaged {} records after: {}; the damaged store is {}", kept,
                    damage.ToString(), *aside));
    return OpenMakingRoom(opened);
  }

  rocksdb::Status CopyReadable(rocksdb::DB& from, const std::string& target, uint64_t* kept) const {
    constexpr uint32_t kBatchRecords = 1024;
    rocksdb::DB* db = nullptr;
    rocksdb::Options made = MakeOptions(options_);
    made.info_log = std::make_shared<RocksLog>();
    rocksdb::Status status = rocksdb::DB::Open(made, target, &db);
    const std::unique_ptr<rocksdb::DB> to(db);
    rocksdb::WriteBatch batch;
    for (Cursor cursor(&from, ""); status.ok() && cursor.Valid(); cursor.Next()) {
      status = batch.Put(ToSlice(cursor.key()), ToSlice(cursor.value()));
      ++*kept;
      if (batch.Count() < kBatchRecords || !status.ok()) continue;
      status = to->Write(rocksdb::WriteOptions(), &batch);
      batch.Clear();
    }
    if (status.ok()) status = to->Write(rocksdb::WriteOptions(), &batch);
    if (status.ok()) status = to->Flush(rocksdb::FlushOptions());
    if (to != nullptr && status.ok()) status = to->Close();
    return status;
  }

  // A salvaged copy that is whole takes the place of a store that was moved aside.
  void TakeCompleteSalvage() const {
    const std::string salvage = options_.directory + ".salvage";
    std::error_code error;
    if (std::filesystem::exists(options_.directory, error)) return;
    if (!std::filesystem::exists(salvage + kCompleteFile, error)) return;
    std::filesystem::rename(salvage, options_.directory, error);
    std::filesystem::remove(options_.directory + kCompleteFile, error);
  }

  Result<std::unique_ptr<MetaStore>> OpenReadOnly() {
    OpenedDb opened;
    rocksdb::Options made = Prepare(&opened);
    made.create_if_missing = false;
    const rocksdb::Status status = Guarded([&] {
      rocksdb::DB* db = nullptr;
      rocksdb::Status result = rocksdb::DB::OpenForReadOnly(made, options_.directory, &db);
      opened.db.reset(db);
      return result;
    });
    if (!status.ok()) return OpenError(status);
    return std::unique_ptr<MetaStore>(new RocksMetaStore(std::move(opened), options_));
  }

  const MetaStoreOptions& options_;
  MetaOpenReport& report_;
};

}  // namespace

Result<std::unique_ptr<MetaStore>> MetaStore::Open(const MetaStoreOptions& options,
                                                   MetaOpenReport* report) {
  MetaOpenReport unused;
  return Opener(options, report != nullptr ? *report : unused).Run();
}

}  // namespace kvcfs::meta
