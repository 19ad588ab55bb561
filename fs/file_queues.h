// What waits to be done behind the calls on ordinary files: copies, records, places to give back.
//
// Threads: any; one short lock, the last in every order.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "fs/fs_types.h"
#include "iouring/segment_store.h"

namespace kvcfs::fs {

// Nobody refers to it any more, in memory. It may be reused when the MetaStore says so durably.
struct RetiredPlace {
  iouring::SegmentPlace place;
  uint64_t length = 0;
  Ino disk_file = 0;  // not 0: the data-disk file of this inode, instead of a place
};

class FileQueues {
 public:
  // To be copied to the segments (or made durable on the data disk) at `due`.
  void QueueCopy(Ino ino, Millis due) {
    MutexLock lock(mutex_);
    copies_.emplace(due, ino);
    // Else it looks in time by itself, and then at many files and their directory at once.
    if (due < looks_at_) changed_.notify_one();
  }
  // At once; asked for again and again while room is wanted.
  void QueueCopySoon(Ino ino) {
    MutexLock lock(mutex_);
    if (soon_.insert(ino).second) changed_.notify_one();
  }
  // The record in memory is newer than the MetaStore's.
  void QueueRecord(Ino ino) {
    MutexLock lock(mutex_);
    records_.push_back(ino);
  }
  void Retire(const RetiredPlace& what) {
    MutexLock lock(mutex_);
    retired_.push_back(what);
  }
  // Damage found by a thread that may not wait.
  void QueueLost(Ino ino) {
    MutexLock lock(mutex_);
    lost_.push_back(ino);
    changed_.notify_one();
  }
  void Stop() {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }

  struct Work {
    std::vector<Ino> copies, records, lost;
    std::vector<RetiredPlace> retired;
    bool stopping = false;
  };
  Work Take(Millis now) {
    MutexLock lock(mutex_);
    return TakeLocked(now);
  }
  // Waits until something is due, at most `limit`.
  Work WaitAndTake(const Clock& clock, Millis limit) {
    MutexLock lock(mutex_);
    const Millis now = clock.Monotonic();
    Millis wait = limit;
    if (!copies_.empty()) wait = std::min(wait, std::max(Millis(0), copies_.begin()->first - now));
    if (!stopping_ && lost_.empty() && soon_.empty() && wait > Millis(0)) {
      looks_at_ = now + wait;
      changed_.wait_for(lock.native(), wait);
      looks_at_ = Millis(0);
    }
    return TakeLocked(clock.Monotonic());
  }

 private:
  Work TakeLocked(Millis now) KVC_REQUIRES(mutex_) {
    Work work;
    work.records.swap(records_);
    work.retired.swap(retired_);
    work.lost.swap(lost_);
    work.copies.assign(soon_.begin(), soon_.end());
    soon_.clear();
    while (!copies_.empty() && copies_.begin()->first <= now) {
      work.copies.push_back(copies_.begin()->second);
      copies_.erase(copies_.begin());
    }
    work.stopping = stopping_;
    return work;
  }

  Mutex mutex_;
  std::condition_variable changed_;
  Millis looks_at_ KVC_GUARDED_BY(mutex_){0};  // next; 0: it works
  std::multimap<Millis, Ino> copies_ KVC_GUARDED_BY(mutex_);
  std::unordered_set<Ino> soon_ KVC_GUARDED_BY(mutex_);
  std::vector<Ino> records_ KVC_GUARDED_BY(mutex_);
  std::vector<RetiredPlace> retired_ KVC_GUARDED_BY(mutex_);
  std::vector<Ino> lost_ KVC_GUARDED_BY(mutex_);
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
};

}  // namespace kvcfs::fs
